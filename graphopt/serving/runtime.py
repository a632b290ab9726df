"""Runs a compiled library: TVM's runtime and NumPy, without the compiler.

Programs do not check what they are given: compiled code does that, and fails without a word on how
to mend it. Whoever calls one checks afterwards, when something is wrong (`Artifact.run`).

Only `libtvm_runtime` (3 MB) is loaded, so a serving process starts in a fraction of a second. Where
the compiler is already in the process, its runtime is used.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import ArtifactError, IdError, InputError
from graphopt.serving import bridge
from graphopt.serving.signature import TensorSpec, aligned_empty

if TYPE_CHECKING:
    from concurrent.futures import Future

ID_ERROR = "graphopt: id out of range: "
ROOM_ERROR = "graphopt: the workspace is too small"
_CPU, _POOLED_ALLOCATOR = 1, 2
MIN_ROWS = 16
"""Fewer samples in a part take less time than starting on one."""
PIECE_BYTES = 2 << 20
"""Values between kernels that a core's own cache all but holds; more of them are computed for some
samples after others."""
_PLANS = 4096  # plans kept, one for each combination of shapes met


@lru_cache(maxsize=1)
def ffi() -> Any:
    """tvm_ffi with TVM's runtime loaded.

    Raises:
        ArtifactError: the runtime is not installed.
    """
    tvm_ffi = bridge.load()
    if "tvm" in sys.modules:
        return tvm_ffi
    folder = runtime_folder()
    # What `import tvm` does where it finds no compiler.
    tvm_ffi.registry._SKIP_UNKNOWN_OBJECTS = True
    ctypes.CDLL(str(folder / "libtvm_runtime.so"), ctypes.RTLD_GLOBAL)
    extra = folder / "libtvm_runtime_extra.so"  # sorting and the like
    if extra.exists():
        ctypes.CDLL(str(extra), ctypes.RTLD_GLOBAL)
    return tvm_ffi


def runtime_folder() -> Path:
    """Where TVM's runtime libraries are.

    Raises:
        ArtifactError: the runtime is not installed.
    """
    spec = importlib.util.find_spec("tvm")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / "lib" / "libtvm_runtime.so").exists():
            return Path(folder) / "lib"
    raise ArtifactError("TVM's runtime is missing; install it with: pip install apache-tvm")


Inputs = Sequence[Any]
"""Arrays in signature order; anything that speaks DLPack."""
Program = Callable[[Inputs], list[np.ndarray]]


@dataclass(frozen=True)
class Convention:
    """How the function of a straight program is called.

    Attributes:
        sizes: where its plan finds its arguments, (input, axis) of each.
        shared: how many numbers keep threads in step that share wide layers, and the bytes of
            weights of these; None if there are no such layers.
        shaping: how many of `sizes`, the first ones, the shapes of outputs depend on; all if None.
        batched: for each input, whether its rows belong to samples, where no sample's results
            depend on another; None if they may.
        late: numbers of the outputs whose sizes the program finds.
    """

    sizes: Sequence[Sequence[int]]
    outputs: Sequence[TensorSpec]
    shared: Sequence[int] | None = None
    shaping: int | None = None
    batched: Sequence[bool] | None = None
    late: Sequence[int] = ()


def load_program(
    library: Path, weights: Sequence[np.ndarray], convention: Convention | None
) -> StraightProgram | MachineProgram:
    """The program in a compiled library, callable from any thread with inputs in signature order.

    Args:
        convention: None if it is code for the virtual machine.

    Raises:
        ArtifactError: the library cannot be loaded.
    """
    load = ffi().load_module
    try:
        module = _module(load, library)
        if convention is None:
            return MachineProgram(module, weights)
        return StraightProgram(module, weights, convention)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1]
        raise ArtifactError(f"{library}: not a usable compiled library ({reason})") from None


_loaded: dict[str, tuple[int, int]] = {}
"""Device and inode of each library, by the path that it was loaded from."""


def _module(load: Callable[[str], Any], library: Path) -> Any:
    """The library at this path as it is now.

    The linker gives back what it loaded before under the same name, even if another file has taken
    its place since, as when a model was compiled again. A new file is loaded by a new name.
    """
    status = library.stat()
    identity = (status.st_dev, status.st_ino)
    if _loaded.setdefault(str(library), identity) == identity:
        return load(str(library))
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / library.name
        link.symlink_to(library.resolve())
        return load(str(link))


@dataclass(frozen=True)
class _Plan:
    """What calls with outputs of certain shapes need: these, and the most bytes of workspace yet.

    Attributes:
        void: whether an output has no elements.
        pieces: how many parts of the batch are computed one after another.
    """

    workspace: int
    outputs: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]
    void: bool
    pieces: int = 1

    def allocate(self) -> list[np.ndarray]:
        """Arrays for the outputs."""
        return [np.empty(shape, dtype) for shape, dtype in self.outputs]


class _Room(threading.local):
    """A thread's workspace, `size` bytes, as an array for compiled code and one of NumPy's."""

    size = -1
    array: Any = None
    bytes: Any = None


class StraightProgram:
    """One function over inputs, outputs, the addresses of the weights, and a workspace.

    It keeps no state between calls. Each thread has a workspace, which grows to what its largest
    batch needs.

    Attributes:
        shared_bytes: weights of the layers that several threads can work on (`helped`); 0 if none.
    """

    def __init__(self, module: Any, weights: Sequence[np.ndarray], convention: Convention) -> None:
        shared, batched = convention.shared, convention.batched
        # Weights that several threads may share are too many to be read for each of some pieces.
        self._batched = None if shared or batched is None or not any(batched) else list(batched)
        self._progress, self.shared_bytes = shared or (0, 0)
        self._share = module["graphopt_share"] if shared else None
        self._convert = ffi().from_dlpack
        self._run, self._plan = module["graphopt_run"], module["graphopt_plan"]
        self._module, self._arrays = module, list(weights)  # kept alive
        addresses = [array.ctypes.data for array in weights] or [0]
        self._weights = self._convert(np.array(addresses, np.int64))
        self._sizes = [(k, axis) for k, axis in convention.sizes]
        self._shaping = self._sizes[: convention.shaping]
        forms = [(len(s.shape or ()), _passed_dtype(s.numpy_dtype)) for s in convention.outputs]
        self._outputs = [form for k, form in enumerate(forms) if k not in convention.late]
        self._late = [(k, *forms[k]) for k in convention.late]
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._room = _Room()

    def __call__(self, inputs: Inputs) -> list[np.ndarray]:
        """Run on arrays in signature order.

        Raises:
            IdError: an id lies outside its table.
            InputError: sizes of inputs do not fit together.
            Exception: of many kinds, if the arrays do not fit the signature.
        """
        plan = self._plan_for(inputs)
        results = plan.allocate()
        self._in_pieces(inputs, results, plan)
        return self._with_late(results) if self._late else results

    def allocate(self, inputs: Inputs) -> list[np.ndarray]:
        """Arrays for the results of `into`."""
        return self._plan_for(inputs).allocate()

    def into(self, inputs: Inputs, results: Sequence[np.ndarray]) -> None:
        """Run as `__call__` does, with arrays of the right shapes for the results."""
        self._in_pieces(inputs, results, self._plan_for(inputs))

    def helped(self, inputs: Inputs, start: Callable[..., Future[Any]], helpers: int) -> list[Any]:
        """As `__call__`, with other threads computing parts of wide layers, as they come to it.

        Args:
            start: calls a function with arguments on another thread, soon or late.
        """
        plan = self._planned(inputs)
        results, progress = plan.allocate(), np.zeros(self._progress, np.int64)
        arrays = map(self._convert, (*inputs, *passed(results)))
        workspace, shared = self._workspace(plan.workspace), self._convert(progress)
        arguments = (*arrays, self._weights, workspace, shared)
        others = [start(self._share, *arguments, 1) for _ in range(helpers)]
        try:
            self._share(*arguments, 0)  # type: ignore[misc]
        except RuntimeError as error:
            raise _translated(error) from None
        finally:
            progress[0] = np.iinfo(np.int64).max  # there is no layer left
            for other in others:  # those that have begun read nothing any more but `progress`
                other.cancel()
        return results

    def _plan_for(self, inputs: Inputs) -> _Plan:
        sizes = tuple([inputs[k].shape[axis] for k, axis in self._shaping])
        return self._plans.get(sizes) or self._planned(inputs)

    def _in_pieces(self, inputs: Inputs, results: Sequence[np.ndarray], plan: _Plan) -> None:
        """Run on some samples after others, so that what is between kernels stays in a cache."""
        pieces, batched = plan.pieces, self._batched
        rows = None if pieces == 1 or batched is None else _rows(inputs, batched)
        if rows is None or batched is None:
            return self._call(inputs, results, plan)
        for k in range(pieces):
            some = slice(rows * k // pieces, rows * (k + 1) // pieces)
            taken = [array[some] if split else array for array, split in zip(inputs, batched)]
            self._call(taken, [array[some] for array in results], self._plan_for(taken))

    def _call(self, inputs: Inputs, results: Sequence[np.ndarray], plan: _Plan) -> None:
        if plan.void:
            results = passed(results)
        try:  # with arrays as they are: converted one by one they would take twice as long
            self._run(*inputs, *results, self._weights, self._workspace(plan.workspace))
        except RuntimeError as error:
            more = self._roomier(inputs, plan) if ROOM_ERROR in str(error) else plan
            if more.workspace == plan.workspace:
                raise _translated(error) from None
            self._call(inputs, results, more)

    def _roomier(self, inputs: Inputs, plan: _Plan) -> _Plan:
        """A plan with more room, for a call that `plan` had too little for."""
        more = self._planned(inputs)
        if more.workspace == plan.workspace:  # what takes more are sizes that the call has found
            needed = int(self._room.bytes[:8].view(np.int64)[0])
            more = replace(more, workspace=needed + needed // 4)
            self._plans[tuple([inputs[k].shape[axis] for k, axis in self._shaping])] = more
        return more

    def _with_late(self, results: list[np.ndarray]) -> list[np.ndarray]:
        """All outputs in order: those given, and copies of those in the workspace."""
        room = self._room.bytes
        numbers = iter(room[: 8 * sum(1 + rank for _, rank, _ in self._late)].view(np.int64))
        for k, rank, dtype in self._late:
            start, *shape = map(int, islice(numbers, 1 + rank))
            stop = start + math.prod(shape) * dtype.itemsize
            results.insert(k, room[start:stop].view(dtype).reshape(shape).copy())
        return results

    def profile(self, inputs: Sequence[np.ndarray], calls: int) -> np.ndarray:
        """Nanoseconds of each of the program's kernel calls, during one run.

        Args:
            inputs: contiguous arrays that fit the signature.
            calls: how many kernel calls the program has.
        """
        run = self._module["graphopt_profile"]
        self(inputs)  # so that there is room for values whose sizes it finds
        plan = self._planned(inputs)
        clock = np.empty((calls + 1, 2), np.int64)
        arrays, workspace = passed([*inputs, *plan.allocate()]), self._workspace(plan.workspace)
        run(*arrays, self._weights, workspace, clock.reshape(-1))
        seconds, nanoseconds = clock.T
        return np.diff(seconds * 1_000_000_000 + nanoseconds)

    def _planned(self, inputs: Inputs) -> _Plan:
        """A plan that does for these inputs; other inputs may give outputs of the same shapes."""
        sizes = tuple([inputs[k].shape[axis] for k, axis in self._sizes])
        found = np.empty(1 + sum(rank for rank, _ in self._outputs), np.int64)
        self._plan(*sizes, self._convert(found))
        dims = iter(found[1:].tolist())
        shapes = [(tuple(islice(dims, rank)), dtype) for rank, dtype in self._outputs]
        if len(self._plans) >= _PLANS:
            self._plans.clear()
        void, decisive = any(0 in shape for shape, _ in shapes), sizes[: len(self._shaping)]
        before = self._plans.get(decisive)
        room = max(int(found[0]), before.workspace if before else 0)
        pieces = self._pieces(inputs, int(found[0]))
        plan = self._plans[decisive] = _Plan(room, tuple(shapes), void, pieces)
        return plan

    def _pieces(self, inputs: Inputs, workspace: int) -> int:
        if self._batched is None:
            return 1
        return max(
            1, min(workspace // PIECE_BYTES, (_rows(inputs, self._batched) or 0) // MIN_ROWS)
        )

    def _workspace(self, nbytes: int) -> Any:
        room = self._room
        if room.size < nbytes:
            room.bytes = aligned_empty(max(nbytes, 8))
            room.array, room.size = self._convert(room.bytes), nbytes
        return room.array


def _rows(inputs: Inputs, batched: Sequence[bool]) -> int | None:
    """How many samples there are; None if inputs do not agree."""
    counts = {array.shape[0] for array, split in zip(inputs, batched) if split}
    return counts.pop() if len(counts) == 1 else None


class MachineProgram:
    """Code for Relax's virtual machine.

    A machine keeps state during a call, so each thread has one of its own; weights and code are
    shared.
    """

    def __init__(self, module: Any, weights: Sequence[np.ndarray]) -> None:
        self._convert = ffi().from_dlpack
        self._load = module["vm_load_executable"]
        self._module, self._arrays = module, list(weights)  # kept alive
        self._weights = [self._convert(_as_passed(array)) for array in weights]
        self._local = threading.local()
        self._main()

    def _main(self) -> Any:
        main = getattr(self._local, "main", None)
        if main is None:
            machine = self._load()
            machine["vm_initialization"](_CPU, 0, _POOLED_ALLOCATOR)
            self._local.machine = machine
            main = self._local.main = machine["main"]
        return main

    def __call__(self, inputs: Inputs) -> list[np.ndarray]:
        """As `StraightProgram.__call__`."""
        try:
            result = self._main()(*map(self._convert, inputs), *self._weights)
        except RuntimeError as error:
            raise _translated(error) from None
        return [np.from_dlpack(tensor) for tensor in result]


def _translated(error: RuntimeError) -> Exception:
    """An error of compiled code as the user is to see it.

    Its kernels demand of ids and sizes what only the inputs can break; TVM's own errors are of
    classes of their own.
    """
    reason, found, rest = str(error).partition(ID_ERROR)
    if found:
        return IdError(f"an id is out of range: {rest.strip().splitlines()[0]}")
    if type(error) is RuntimeError:
        return InputError(f"the inputs do not fit together: {reason.strip().splitlines()[0]}")
    return error


def passed(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Checked, contiguous arrays as compiled code takes them."""
    return [_as_passed(array) for array in arrays]


def _passed_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """bfloat16, which NumPy lacks, crosses the border as uint16."""
    return np.dtype(np.uint16) if dtype.kind == "V" and dtype.itemsize == 2 else dtype


def _as_passed(array: np.ndarray) -> np.ndarray:
    """The array in the form that crosses the border.

    Strides of an array without elements are those that the sizes imply, where NumPy takes 0 for 1.
    """
    if array.size and array.dtype.kind != "V":
        return array
    array = array.view(_passed_dtype(array.dtype))
    if array.size == 0:
        strides = [math.prod(array.shape[k + 1 :]) * array.itemsize for k in range(array.ndim)]
        array = np.lib.stride_tricks.as_strided(array, strides=strides)
    return array
