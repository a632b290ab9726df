"""The largest variants of dense layers on a GPU keep everything in registers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import pytest

from graphopt.errors import OutputError
from graphopt.targets.cuda import nvcc
from graphopt.targets.cuda.gemm_defaults import default_ranges
from graphopt.targets.cuda.gemm_family import GpuGemmProblem
from graphopt.targets.cuda.kernels.gemm import Math

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import gpu_build


def _missing() -> str:
    try:
        nvcc.find()
    except OutputError as error:
        return str(error)
    return ""


@pytest.mark.skipif(bool(_missing()), reason=_missing())
def test_the_largest_tiles_stay_in_registers() -> None:
    """One launch of each way to multiply: rows of 429 do not begin at multiples of 16 bytes."""
    chosen = [
        (GpuGemmProblem(429, 400, math, 8192), default_ranges(400, math)[-1][1])
        for math in get_args(Math)
    ]
    taken = gpu_build.resources(chosen, ("sm_80", "sm_90"))
    assert [each["spill_bytes"] for each in taken] == [0] * len(chosen)
    assert all(32 <= each["registers"] <= 255 for each in taken)


def test_every_variant_that_the_tuner_tries_is_looked_at() -> None:
    for math in get_args(Math):
        kinds = {type(variant).__name__ for _, variant in gpu_build.variants(math)}
        assert kinds == {"Tile", "FewRows", "RowDots"}
