"""Tunes the dense layers of a graph on a GPU, here or far away, or by what was measured on one."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tvm

from graphopt.errors import ArtifactError, SpecError
from graphopt.ir.dims import product, substitute, symbols
from graphopt.ir.graph import Graph, Node
from graphopt.serving.gpu_runtime.connection import connect
from graphopt.targets.cuda import nvcc, packing
from graphopt.targets.cuda.build import compiled_by
from graphopt.targets.cuda.gemm_family import GpuGemmFamily, GpuGemmProblem, ranges_of
from graphopt.targets.cuda.kernels import elementary
from graphopt.targets.cuda.kernels.gemm import MAX_RANGES, with_device_code
from graphopt.targets.cuda.legalize import dense_layers
from graphopt.targets.relax.build import export
from graphopt.targets.tuning.family import KernelFamily
from graphopt.targets.tuning.options import Tuning
from graphopt.targets.tuning.remote import Remote, Session
from graphopt.targets.tuning.tuner import Summary, Tuner, require_close

_TURNS = 5
_SECONDS = 0.005  # of every turn
_FIRST, _MOST = 3, 1000  # launches: to see how long one takes, and of a turn


def tune(graph: Graph, tuning: Tuning, target: tvm.target.Target, architecture: str) -> Summary:
    """Choose what is launched for how many rows, the attribute `ranges` of dense layers.

    Args:
        architecture: what is measured holds for GPUs of it.

    Raises:
        SpecError: something is to be measured, and there is no such GPU; or there are more batch
            sizes than a kernel has variants for.
        TuningMissError: the cache had to know all layers and does not.
    """
    if len(tuning.batches) > MAX_RANGES:
        raise SpecError(f"kernels for GPUs are tuned for {MAX_RANGES} batch sizes at most")
    gpu = _gpu(tuning.remote, architecture) if tuning.measures else None
    try:
        return _tuned(graph, tuning, target, architecture, gpu)
    finally:
        if gpu is not None and gpu.session is not None:
            gpu.session.close()


def _tuned(
    graph: Graph,
    tuning: Tuning,
    target: tvm.target.Target,
    architecture: str,
    gpu: _Gpu | None,
) -> Summary:
    elementary.register()
    measure = None if gpu is None else partial(_ratios, gpu)
    family, tuner = GpuGemmFamily(), Tuner(tuning, target, f"cuda {architecture}", measure)
    problems = {layer: _problems(layer, tuning) for layer in dense_layers(graph)}
    tuner.tune(family, [problem for found in problems.values() for problem in found])
    for layer, found in problems.items():
        layer.attrs["ranges"] = ranges_of({p.rows: tuner.params(family, p) for p in found})
    return tuner.summary


@dataclass(frozen=True)
class _Gpu:
    """The GPU that measures: of this machine, or of the one that a session leads to."""

    architecture: str
    session: Session | None

    @property
    def device(self) -> Any:
        return tvm.cuda(0) if self.session is None else self.session.device

    def loaded(self, executable: Any, compile_source: Callable[[str], bytes], host: Any) -> Any:
        """The module of what was compiled."""
        if self.session is None:
            return executable.jit()
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "kernel.so"
            pack = packing.packer(host, compile_source)
            export(executable, platform.machine(), library, pack)
            return self.session.load(library)


def _gpu(remote: Remote | None, architecture: str) -> _Gpu:
    try:
        session = None if remote is None else remote.connect()
        version = connect() if session is None else session.compute_version
    except ArtifactError as error:
        raise SpecError(
            f"kernels for GPUs are tuned on one, but {error}; compile with a --tuning-cache that "
            "was filled where there is one, or measure on another machine with --rpc"
        ) from None
    present = f"sm_{version.replace('.', '')}"
    if present != architecture.rstrip("a"):
        if session is not None:
            session.close()
        where = "of this machine" if remote is None else f"at {remote}"
        raise SpecError(
            f"the GPU {where} is {present}, which code for {architecture} is not tuned on; "
            f"try --target cuda:{present}"
        )
    return _Gpu(present, session)


def _problems(layer: Node, tuning: Tuning) -> list[GpuGemmProblem]:
    """A layer at each of the batch sizes; every free size stands for the batch."""
    data, weights = layer.inputs[0], layer.const(1)
    assert data is not None and weights is not None
    count = product(data.tensor.dims[:-1])
    found = [substitute(count, dict.fromkeys(symbols(count), b).get) for b in tuning.batches]
    rows = sorted({number for number in found if isinstance(number, int)} or set(tuning.batches))
    k, n = weights.shape
    return [GpuGemmProblem(k, n, layer.attrs["math"], number) for number in rows]


def _ratios(
    gpu: _Gpu,
    family: KernelFamily,
    problem: Any,
    default: Any,
    params: Any,
    target: tvm.target.Target,
) -> list[float]:
    """The time of `params` over that of the default, by events of the GPU, in turns.

    What spills registers is not run, and takes for ever: a layer of another size, or the next
    compiler, may spill more, so that no such lead is worth to be kept.
    """
    candidate = _Measured(gpu, family, problem, params, target)
    if candidate.spills:
        return [inf]
    base = _Measured(gpu, family, problem, default, target)
    for each in (base, candidate):
        each.prepare()
    require_close(family, problem, params, candidate.result, base.result)
    turns = [(base.seconds(), candidate.seconds()) for _ in range(_TURNS)]
    return [median(b for _, b in turns) / median(a for a, _ in turns)]


class _Measured:
    """A kernel on the GPU with its operands, and what it gives.

    Attributes:
        spills: bytes of registers that it keeps in memory, for want of more.
        result: once it is prepared.
    """

    def __init__(
        self,
        gpu: _Gpu,
        family: KernelFamily,
        problem: Any,
        params: Any,
        target: tvm.target.Target,
    ) -> None:
        kernel = family.kernel(problem, params).with_attr("global_symbol", "main")

        self.spills = 0

        def compile_source(source: str) -> bytes:
            binary, taken = nvcc.fatbin(with_device_code(source), [gpu.architecture])
            spilled = [k["spill_bytes"] for kernels in taken.values() for k in kernels.values()]
            self.spills = max(spilled, default=0)
            return binary

        with compiled_by(compile_source), target:
            executable = tvm.compile(tvm.IRModule({"main": kernel}), target=target)
        self._module = gpu.loaded(executable, compile_source, target.host)
        self._device = gpu.device
        (self._trial,) = family.trials(problem, params)

    def prepare(self) -> None:
        """Send the operands, launch it once, and see how often it is launched in a turn."""
        arrays = [*self._trial.inputs, np.zeros(*self._trial.output)]
        self._arguments = [tvm.runtime.tensor(array, self._device) for array in arrays]
        self._module["main"](*self._arguments)
        self.result = self._arguments[-1].numpy()
        once = self._timer(_FIRST)(*self._arguments).mean
        self._time = self._timer(max(_FIRST, min(_MOST, int(_SECONDS / max(once, 1e-9)))))

    def _timer(self, launches: int) -> Any:
        return self._module.time_evaluator("main", self._device, number=launches)

    def seconds(self) -> float:
        """The mean time of a launch in one turn."""
        return float(self._time(*self._arguments).mean)
