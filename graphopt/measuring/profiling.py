"""Where the time of an artifact goes, kernel by kernel, next to what the machine could do."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import api
from graphopt.analysis.batch_sizes import sizes_at
from graphopt.analysis.program import evaluate, operations
from graphopt.errors import ArtifactError
from graphopt.ir import onnx_io
from graphopt.machine import cpu_name
from graphopt.measuring.feature_times import FeatureTime, TableTime, feature_times, table_times
from graphopt.measuring.roofline import Roofline, roofline
from graphopt.serving import gpu_runtime
from graphopt.serving.artifact import Artifact
from graphopt.serving.manifest import PORTABLE, obstacle, read_manifest

LEAST_RUNS = 20


@dataclass(frozen=True)
class KernelTime:
    """One kernel call.

    Attributes:
        ops: what it computes, fused.
        sources: the nodes of the user's model that it stands for.
        microseconds: the median over the runs; None if it was not run.
        flops, bytes: operations, and bytes read and written; None where known at run time only.
        bound: the least microseconds that the roofline allows.
    """

    kernel: str
    ops: tuple[str, ...]
    sources: tuple[str, ...]
    microseconds: float | None
    flops: int | None
    bytes: int | None
    bound: float | None


@dataclass(frozen=True)
class Profile:
    """All kernel calls of one run, in order.

    Attributes:
        total: the median of whole calls of `Artifact.run`, in microseconds; None if this machine
            cannot run the artifact.
        device: the CPU or GPU that ran them, or the target and why it cannot run here.
        peaks: of one core of the CPU; None for a GPU, or another machine.
        tables, features: the times of the kernels as times of tables, and of what the model is
            given; the slowest first.
    """

    batch: int
    total: float | None
    runs: int
    device: str
    peaks: Roofline | None
    kernels: tuple[KernelTime, ...]
    tables: tuple[TableTime, ...] = ()
    features: tuple[FeatureTime, ...] = ()

    @property
    def inside(self) -> float:
        """Microseconds in kernels; the rest of `total` is the call itself."""
        return sum(kernel.microseconds or 0.0 for kernel in self.kernels)

    @property
    def bound(self) -> float:
        """The sum of the kernels' bounds, those that are known."""
        return sum(kernel.bound or 0.0 for kernel in self.kernels)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"inside": self.inside, "bound": self.bound}


def profile(
    path: str | Path,
    batch: int = 64,
    *,
    seconds: float = 1.0,
    inputs: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    peaks: Roofline | None = None,
) -> Profile:
    """Run the artifact at `path` for a while, its kernels one by one and whole calls in turns.

    One that this machine cannot run is described only: operations and bytes, and no times.

    Args:
        inputs: what to run it on; random valid inputs of size `batch` if None.
        peaks: of this machine; measured if None, unless the artifact is for a GPU.

    Raises:
        ArtifactError: it cannot be loaded, or has loops.
        InputError: it does not accept the inputs.
    """
    reason = obstacle(read_manifest(Path(path)))
    if reason:
        return _unmeasured(Artifact.foreign(Path(path)), batch, inputs, reason)
    artifact = Artifact.load(path)
    feeds = inputs or api.random_inputs(artifact.path, artifact, batch, seed)
    on_gpu = "gpu" in artifact.manifest
    if peaks is None and not on_gpu:
        peaks = roofline()
    medians, whole = _measured(artifact, feeds, seconds)
    sizes, program = _sizes(artifact, feeds), artifact.manifest["program"]
    times = [float(time) for time in medians]
    device = gpu_runtime.device_name() if on_gpu else cpu_name()
    return Profile(
        batch,
        whole[0],
        whole[1],
        device,
        peaks,
        tuple(_kernel_time(entry, time, sizes, peaks) for entry, time in zip(program, times)),
        table_times(program, times, sizes, _source_tables(artifact)),
        feature_times(program, times, sizes),
    )


def _unmeasured(
    artifact: Artifact, batch: int, feeds: Mapping[str, np.ndarray] | None, reason: str
) -> Profile:
    program = artifact.manifest["program"]
    if not program:
        raise ArtifactError(f"{artifact.path}: a program with loops cannot be profiled by kernel")
    if feeds is None:
        sizes = sizes_at(onnx_io.load(artifact.path / PORTABLE), batch)
    else:
        artifact.signature.bind(feeds)
        sizes = _sizes(artifact, feeds)
    kernels = tuple(_kernel_time(entry, None, sizes, None) for entry in program)
    tables = table_times(program, [None] * len(program), sizes, _source_tables(artifact))
    device = f"{artifact.manifest['target']}, not run here: {reason}"
    return Profile(batch, None, 0, device, None, kernels, tables)


def _source_tables(artifact: Artifact) -> list[dict[str, Any]]:
    """The tables of the source model; none where the report is not with the artifact."""
    with suppress(OSError, ValueError):
        return list(artifact.report.get("tables", ()))
    return []


def floor(artifact: Artifact, feeds: Mapping[str, np.ndarray], peaks: Roofline) -> float | None:
    """The least microseconds for all kernels on `feeds`; None if some costs are not known."""
    sizes = _sizes(artifact, feeds)
    bounds = [
        _kernel_time(entry, None, sizes, peaks).bound for entry in artifact.manifest["program"]
    ]
    known = [bound for bound in bounds if bound is not None]
    return round(sum(known), 2) if known and len(known) == len(bounds) else None


def _measured(
    artifact: Artifact, feeds: Mapping[str, np.ndarray], seconds: float
) -> tuple[np.ndarray, tuple[float, int]]:
    """Median microseconds of each kernel call; median microseconds of a whole call, and runs."""
    kernels, whole = list[np.ndarray](), list[float]()
    until = time.perf_counter() + seconds
    while len(whole) < LEAST_RUNS or time.perf_counter() < until:
        kernels.append(artifact.profile(feeds))
        start = time.perf_counter()
        artifact.run(feeds)
        whole.append(time.perf_counter() - start)
    return np.median(kernels, axis=0) / 1e3, (float(np.median(whole)) * 1e6, len(whole))


def _sizes(artifact: Artifact, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The number that each named size of the signature has in `feeds`."""
    found: dict[str, int] = {}
    for spec in artifact.signature.inputs:
        for size, declared in zip(feeds[spec.name].shape, spec.shape or ()):
            if isinstance(declared, str):
                found[declared] = size
    return found


def _kernel_time(
    entry: Mapping[str, Any],
    microseconds: float | None,
    sizes: Mapping[str, int],
    peaks: Roofline | None,
) -> KernelTime:
    done, moved = operations(entry["flops"], sizes), evaluate(entry["bytes"], sizes)
    flops, bound = None if done is None else sum(done.values()), None
    if peaks is not None and done is not None and moved is not None:
        bound = peaks.seconds(done, moved) * 1e6
    ops, sources = tuple(entry["ops"]), tuple(entry["sources"])
    took = None if microseconds is None else round(microseconds, 3)
    return KernelTime(entry["kernel"], ops, sources, took, flops, moved, bound)
