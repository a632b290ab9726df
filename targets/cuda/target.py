"""Compiles for NVIDIA GPUs, on any machine: neither a GPU nor its driver is needed."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import tvm

from graphopt.analysis.program import describe
from graphopt.errors import ArtifactError, SpecError
from graphopt.ir.graph import Graph
from graphopt.serving.gpu_runtime.connection import connect
from graphopt.targets.base import Compiled, Oob, Precision, Target
from graphopt.targets.cuda.kernels.gemm import Math
from graphopt.targets.tuning.options import Tuning

DEFAULT = ("sm_80", "sm_90")
_OLDEST = 75  # what nvcc 13 still compiles for
_TENSOR_CORES = 80  # the first that multiply tf32, bfloat16 and 8 bits in such tiles
_MATH: dict[Precision, Math] = {
    "fp32": "Fp32",
    "tf32x3": "Tf32x3",
    "tf32": "Tf32",
    "bf16": "Bf16",
    "fp16": "Fp16",
}


@dataclass(frozen=True)
class CudaTarget(Target):
    """One or more GPU architectures.

    Attributes:
        architectures: NVIDIA's names of them, oldest first, such as "sm_80" (A100).
        precision: what dense layers multiply.
    """

    architectures: tuple[str, ...]
    precision: Precision = "fp32"

    name: ClassVar[str] = "cuda"
    portable: ClassVar[bool] = False
    own_passes: ClassVar[str] = "raise-loops,fixpoint(cancel-transposes,simplify-reshapes,cse,dce)"

    @classmethod
    def parse(cls, argument: str) -> CudaTarget:
        names = [name.strip() for name in argument.split(",")] if argument else _present()
        for name in names:
            match = re.fullmatch(r"sm_(\d+)a?", name)
            if match is None or int(match[1]) < _OLDEST:
                raise SpecError(f"no GPU architecture is called {name!r}; try cuda:sm_80,sm_90")
        return cls(tuple(sorted(set(names), key=_number)))

    def computing(self, precision: Precision) -> CudaTarget:
        oldest = self.architectures[0]
        if precision != "fp32" and _number(oldest) < _TENSOR_CORES:
            raise SpecError(
                f"{oldest} has no tensor cores for --precision {precision}; "
                f"sm_{_TENSOR_CORES} and newer have"
            )
        return replace(self, precision=precision)

    @property
    def row_levels(self) -> int:
        return self.verified_levels if _number(self.architectures[0]) >= _TENSOR_CORES else 0

    @property
    def math(self) -> Math:
        """How dense layers multiply."""
        return _MATH[self.precision]

    def legalize(self, graph: Graph) -> Graph:
        from graphopt.targets.cuda import legalize, ops
        from graphopt.targets.relax import expand, narrow_floats

        ops.register()
        working = graph.clone()
        tensor_cores = _number(self.architectures[0]) >= _TENSOR_CORES
        legalize.legalize(working, self.math, tensor_cores)
        expand.expand_functions(working, self.name)  # what of them no kernel has taken
        narrow_floats.widen_bfloat16(working)
        narrow_floats.widen_float16(working)
        legalize.legalize(working, self.math, tensor_cores)
        return working

    def compile(
        self,
        graph: Graph,
        library: Path,
        oob: Oob,
        stage: Callable[[str], Any],
        tuning: Tuning | None = None,
    ) -> Compiled:
        from graphopt.targets.cuda import build, nvcc
        from graphopt.targets.cuda.lowering import CudaLowering
        from graphopt.targets.relax import lowering

        if tuning is not None and tuning.meta_schedule:
            raise SpecError("--meta-schedule searches schedules for CPUs only; compile without it")
        nvcc.find()
        stage("lower")
        working = self.legalize(graph)
        tuned = {}
        if tuning is not None:
            from graphopt.targets.cuda import tuning as gpu_tuning

            stage("tune")
            newest = self.architectures[-1]
            summary = gpu_tuning.tune(working, tuning, self._tvm(), newest)
            tuned["tuning"] = asdict(summary)
            stage("lower")
        state = CudaLowering(self._tvm(), oob, self.math)
        lowered = lowering.lower(working, oob, state)
        stage("build")
        code = lowered.module, self._tvm(), library, self.architectures
        built = build.build(*code, lowered.emitted, lowered.functions)
        facts = {
            "target": f"cuda:{','.join(self.architectures)}",
            "precision": self.precision,
            "machine": platform.machine(),
            "gpu": {
                "architectures": list(self.architectures),
                "demands": [demand.message for demand in state.demands],
                "decisions": state.decisions,
                "straight": built.embedded is not None,
            },
            "tvm": tvm.__version__,
            "sizes": None,
            "program": describe(working, built.program),
            **tuned,
        }
        arrays = tuple(value.const for value in lowered.constants if value.const is not None)
        return Compiled((*arrays, *(built.embedded or ())), facts, built.report)

    def _tvm(self) -> tvm.target.Target:
        """TVM's target; the code is the same for all architectures, so the oldest one's."""
        return tvm.target.Target(
            {
                "kind": "cuda",
                "arch": self.architectures[0],
                "max_num_threads": 1024,
                "max_shared_memory_per_block": 49152,
                "host": {"kind": "llvm"},
            }
        )


def _present() -> Sequence[str]:
    """The architecture of this machine's GPU, or those to compile for where there is none."""
    try:
        number = int(connect().replace(".", ""))
    except ArtifactError:
        return DEFAULT
    return (f"sm_{number}",) if number >= _OLDEST else DEFAULT


def _number(architecture: str) -> int:
    return int(architecture.strip("sm_a"))
