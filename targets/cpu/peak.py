"""The rate of float32 multiply-adds that one core of this CPU reaches."""

from __future__ import annotations

import numpy as np

from graphopt.latency import Call
from graphopt.targets.cpu.gemm_family import GemmFamily, GemmProblem
from graphopt.targets.cpu.target import CpuTarget
from graphopt.targets.tuning.calls import calls_of

PROBLEM = (256, 128, 480)  # k, n, rows: operands stay in the second-level cache


def product() -> tuple[Call, int]:
    """A call of our packed GEMM on small matrices, and the operations that it does."""
    k, n, rows = PROBLEM
    host, family = CpuTarget.parse(""), GemmFamily()
    problem = GemmProblem(k, n, host.lanes, (rows,))
    ((call, output),) = calls_of(family, problem, family.default(problem), host.llvm)
    call()
    assert np.isfinite(output).all()
    return call, 2 * k * n * rows
