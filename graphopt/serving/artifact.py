"""Compiled artifacts: a folder that says what it is.

model.gopt/
  manifest.json   signature, target, versions, where each weight lies
  model.so        the compiled code
  weights.bin     tables and weights, mapped and shared by all processes that load it
  model.onnx      the same model in portable form; its weights are in weights.bin too
  report.json     how it came about
  model.cu        for GPUs: the CUDA C that the code in model.so was compiled from
"""

from __future__ import annotations

import json
import mmap
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from graphopt.errors import ArtifactError, GraphoptError, IdError, InputError
from graphopt.serving import gpu_runtime
from graphopt.serving.bad_ids import located
from graphopt.serving.manifest import (
    LIBRARY,
    MANIFEST,
    REPORT,
    WEIGHTS,
    obstacle,
    read_manifest,
    signature_from_json,
)
from graphopt.serving.runtime import Convention, Program, StraightProgram, load_program, passed
from graphopt.serving.signature import TensorSpec
from graphopt.serving.small_pages import map_singly

GPU_MEMORY_SHARE = 0.8
"""How much of a GPU's free memory weights may take: the rest is for batches."""


class Artifact:
    """A loaded artifact.

    Attributes:
        path: its folder.
        signature: what `run` takes and gives.
        manifest: the contents of `manifest.json`.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], program: Program) -> None:
        self.path, self.manifest = path, manifest
        self.signature = signature_from_json(manifest)
        self._names = [spec.name for spec in self.signature.inputs]
        self._ordered = _reader(self._names)
        self._results = [(s.name, s.numpy_dtype) for s in self.signature.outputs]
        self._program = program
        self._on_threads: dict[int, Program] = {1: program}

    @classmethod
    def load(
        cls,
        path: str | Path,
        gpu_memory_share: float = GPU_MEMORY_SHARE,
        large_pages: bool = True,
    ) -> Artifact:
        """Load the artifact in folder `path`; weights are mapped, not read.

        Args:
            gpu_memory_share: for a GPU, how much of its free memory weights may take; larger tables
                stay in the host's.
            large_pages: whether weights may be mapped in pages of 2 MB, or singly (`small_pages`).

        Raises:
            ArtifactError: it is missing, damaged, of another version, or for another machine.
        """
        path = Path(path)
        manifest = read_manifest(path)
        try:
            reason = obstacle(manifest)
            if reason:
                raise ArtifactError(f"{path}: {reason}")
            _check_files(path, manifest["files"], manifest.get("crc32", {}))
            weights = _map_weights(path, manifest["weights"], large_pages)
            return cls(path, manifest, _program(path, manifest, weights, gpu_memory_share))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            file = path / MANIFEST
            raise ArtifactError(f"{file}: damaged ({error!r}); compile it again") from None

    @classmethod
    def foreign(cls, path: Path) -> Artifact:
        """The artifact in folder `path`, for another machine: `run` raises ArtifactError."""
        manifest = read_manifest(path)
        reason = obstacle(manifest)

        def refuse(inputs: Sequence[Any]) -> list[np.ndarray]:
            raise ArtifactError(f"{path}: {reason}")

        return cls(path, manifest, refuse)

    @property
    def report(self) -> dict[str, Any]:
        """What happened on the way here (`report.json`).

        Raises:
            ArtifactError: it is missing or damaged.
        """
        try:
            found: dict[str, Any] = json.loads((self.path / REPORT).read_text())
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{self.path / REPORT}: cannot be read ({error})") from None
        return found

    def run(self, feeds: Mapping[str, Any], threads: int = 1) -> dict[str, np.ndarray]:
        """Compute the outputs for one batch. May be called from several threads at once.

        Args:
            threads: how many may work on it: on parts of the batch, or on parts of wide layers
                where it is small, or where samples may depend on one another (see `splits`).
            feeds: an array per input name. C-contiguous ones are used in place, others are copied.

        Returns:
            an array per output name, not copied from where the code wrote it.

        Raises:
            InputError: the arrays do not fit the signature.
            IdError: an id lies outside its table (if the artifact was compiled with oob="error").
        """
        program = self._on_threads.get(threads)
        if program is None:
            program = self._on_threads.setdefault(threads, self._split(threads))
        try:
            if len(feeds) != len(self._names):
                raise KeyError
            results = program(self._ordered(feeds))
        except IdError as error:
            raise located(error, self.manifest.get("ids", ()), feeds) from None
        except (InputError, ArtifactError):
            raise
        except Exception:
            # Compiled code refused the arrays: find out why, or bring them into the form it takes.
            results = self._run_bound(program, self.signature.bind(feeds))
        return {
            name: array if array.dtype is dtype else array.view(dtype)
            for (name, dtype), array in zip(self._results, results)
        }

    def run_device(
        self,
        feeds: Mapping[str, Any],
        stream: int | None = None,
        out: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """As `run`, on a GPU, with outputs that stay there.

        Args:
            feeds: an array per input name: NumPy's, or anything that speaks DLPack, on the host or
                on the GPU. What lies on the GPU is read there, when its producer's stream is done.
            stream: handle of the CUDA stream to work on. The outputs are then ready for what that
                stream is given later, and inputs on the GPU may be given back or written to in its
                order; without one the outputs are ready at once.
            out: an array on the GPU per output name, to write to; without it each call allocates.

        Returns:
            a tensor per output name, for `torch.from_dlpack` and the like; or what `out` holds.

        Raises:
            InputError: the arrays do not fit the signature, or the batch does not fit the GPU.
            IdError: an id lies outside its table (if the artifact was compiled with oob="error").
            ArtifactError: it was not compiled for a GPU, or the GPU failed.
        """
        inputs, names = self.signature.ordered(feeds), [name for name, _ in self._results]
        if out is not None and out.keys() != set(names):
            raise InputError(f"`out` names {list(out)}, the outputs are {names}")
        targets = None if out is None else [out[name] for name in names]
        return dict(zip(names, self._on_gpu().on_device(inputs, stream, targets)))

    def device_times(self, feeds: Mapping[str, Any], calls: int = 100) -> np.ndarray:
        """Microseconds that the GPU takes for each of `calls` runs on the same inputs.

        They are measured by CUDA events, after a warm-up, with inputs and outputs on the GPU.

        Raises:
            InputError, ArtifactError: as `run_device`.
        """
        return self._on_gpu().device_times(self.signature.ordered(feeds), calls)

    @property
    def placement(self) -> dict[str, Any]:
        """How a GPU runs the artifact, as far as only loading it can tell.

        `device_bytes` and `host_bytes` of weights, `host_tables` (the shapes of those that stay in
        the host's memory), and `no_graphs`: why calls are not captured as CUDA graphs, or None.

        Raises:
            ArtifactError: it was not compiled for a GPU.
        """
        program = self._on_gpu()
        weights, entries = program.weights, self.manifest["weights"]
        return {
            "device_bytes": weights.device_bytes,
            "host_bytes": weights.host_bytes,
            "host_tables": [entries[k]["shape"] for k in weights.host],
            "no_graphs": program.refusal,
        }

    def _on_gpu(self) -> gpu_runtime.StraightProgram | gpu_runtime.MachineProgram:
        program = self._program
        if isinstance(program, (gpu_runtime.StraightProgram, gpu_runtime.MachineProgram)):
            return program
        raise ArtifactError(f"{self.path}: not loaded on a GPU; compile it with --target cuda")

    def profile(self, feeds: Mapping[str, Any]) -> np.ndarray:
        """Run once; nanoseconds of each call in `manifest["program"]`.

        Raises:
            InputError: the arrays do not fit the signature.
            ArtifactError: the program is not a straight line of kernel calls.
        """
        if not isinstance(self._program, (StraightProgram, gpu_runtime.StraightProgram)):
            raise ArtifactError(f"{self.path}: a program with loops cannot be profiled by kernel")
        inputs = self.signature.bind(feeds)
        return self._program.profile(inputs, len(self.manifest["program"]))

    @property
    def precision(self) -> str:
        """What dense layers multiply: "fp32", "tf32x3", "tf32", "bf16" or "fp16"."""
        return str(self.manifest.get("precision", "fp32"))

    @property
    def splits(self) -> bool:
        """Whether `run` can split a batch: samples were proved not to depend on one another."""
        return self.manifest["batch_inputs"] is not None and self.manifest["sizes"] is not None

    def _split(self, threads: int) -> Program:
        if not isinstance(threads, Integral) or threads < 1:
            raise InputError(f"threads must be a whole number of at least 1, not {threads!r}")
        if not isinstance(self._program, StraightProgram):
            return self._program
        from graphopt.serving.splitting import Splitting

        batched = self.manifest["batch_inputs"]
        if not any(batched or ()) and not self._program.shared_bytes:
            return self._program
        return Splitting(self._program, batched, threads)

    def _run_bound(self, program: Program, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run on arrays that fit the signature: if it fails, it is what the model makes of them."""
        try:
            return program(passed(arrays))
        except IdError as error:
            feeds = dict(zip(self._names, arrays))
            raise located(error, self.manifest.get("ids", ()), feeds) from None
        except (GraphoptError, MemoryError):
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if "bad_alloc" in reason:
                raise MemoryError("the model asks for more memory than there is") from None
            raise InputError(f"the model fails on these inputs: {reason}") from None

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} cannot be pickled or copied; load it from its path again")

    def __repr__(self) -> str:
        return f"<Artifact {self.path} for {self.manifest['target']}>"


def _reader(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    """What gives the values of `names`, in order, of a mapping."""
    if len(names) > 1:
        return itemgetter(*names)  # half the time of reading one by one
    return lambda feeds: [feeds[name] for name in names]


def _program(
    path: Path, manifest: dict[str, Any], weights: list[np.ndarray], gpu_memory_share: float
) -> Program:
    gpu, signature = manifest.get("gpu"), signature_from_json(manifest)
    if gpu is not None:
        return gpu_runtime.load_program(path / LIBRARY, weights, signature, gpu, gpu_memory_share)
    convention = None
    if manifest["sizes"] is not None:
        known = (manifest.get("shared"), manifest.get("shaping"), manifest["batch_inputs"])
        late = manifest.get("late_outputs", ())
        convention = Convention(manifest["sizes"], signature.outputs, *known, late)
    return load_program(path / LIBRARY, weights, convention)


def _check_files(path: Path, sizes: dict[str, int], sums: dict[str, int]) -> None:
    """A library cut short, or with a bit turned, may load and kill the process when it runs."""
    for name, size in sizes.items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            what = "missing" if found is None else f"has {found} bytes instead of {size}"
            raise ArtifactError(f"{file}: {what}; compile the model again")
    for name, wanted in sums.items():
        if zlib.crc32((path / name).read_bytes()) != wanted:
            raise ArtifactError(
                f"{path / name}: damaged; copy it again, or compile the model again"
            )


def _map_weights(path: Path, entries: list[dict[str, Any]], large_pages: bool) -> list[np.ndarray]:
    file = path / WEIGHTS
    size = file.stat().st_size if file.exists() else 0
    end = max((e["offset"] + e["nbytes"] for e in entries), default=0)
    if end > size:
        raise ArtifactError(f"{file}: has {size} bytes, {end} are needed; compile the model again")
    if size == 0:
        return [_view(np.empty(0, np.uint8), entry) for entry in entries]
    # Copy-on-write: pages are shared with every other process as long as nobody writes, and nobody
    # does; a read-only map could not be handed over through DLPack.
    with file.open("rb") as opened:
        memory = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    reason = None if large_pages else map_singly(memory)
    if reason:
        text = f"{file}: more than what is read will count as resident: {reason}"
        warnings.warn(text, RuntimeWarning, stacklevel=4)
    return [_view(np.frombuffer(memory, np.uint8), entry) for entry in entries]


def _view(mapped: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    spec = TensorSpec("", entry["dtype"], None)
    raw = mapped[entry["offset"] : entry["offset"] + entry["nbytes"]]
    return raw.view(spec.numpy_dtype).reshape(entry["shape"])
