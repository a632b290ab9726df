"""The GEMM for GPUs as a family of kernels that can be tuned."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import Any, ClassVar

import numpy as np

from graphopt.targets.cpu.kernels.row_codes import Quantization
from graphopt.targets.cuda.gemm_defaults import default_ranges, shared_limit
from graphopt.targets.cuda.kernels.gemm import (
    MAX_DOTS,
    FewRows,
    Math,
    Range,
    RowDots,
    Tile,
    Variant,
    coded_width,
    device_code,
    gemm,
)
from graphopt.targets.cuda.kernels.packed import SUMS, pack_codes, pack_weights
from graphopt.targets.tuning.family import KernelFamily, Trial

_FEW = [
    (1, 16, 512), (1, 8, 512), (2, 16, 256), (4, 16, 256), (4, 16, 512), (8, 16, 256),
    (8, 16, 512), (8, 8, 256),
]  # fmt: skip
_TILES = [
    (128, 128, 32, 64, 32, 2), (128, 128, 16, 64, 32, 3), (128, 64, 32, 32, 32, 3),
    (64, 64, 64, 32, 32, 2, 2), (64, 64, 32, 32, 32, 3), (64, 64, 32, 32, 32, 3, 2),
    (64, 32, 64, 32, 32, 3, 2), (32, 64, 64, 32, 32, 3, 2), (32, 32, 64, 32, 32, 3, 4),
    (32, 32, 32, 32, 32, 3, 2), (32, 16, 128, 32, 16, 3, 8), (16, 32, 128, 16, 32, 2, 8),
    (16, 32, 64, 16, 32, 3, 4), (16, 16, 128, 16, 16, 4, 8), (16, 16, 64, 16, 16, 4, 4),
]  # fmt: skip
_MOST_FEW = 128  # rows: beyond, no layer gains from reading its weights once for few of them
_ROUNDING: dict[Math, float] = {
    "Fp32": 1e-3,
    "Tf32x3": 1e-3,
    "Tf32": 4e-3,
    "Bf16": 3e-2,
    "Fp16": 4e-3,
    "Int8": 1e-6,
    "Codes": 1e-6,
}

_TRIED = Quantization(0.03, 128)  # any takes the same time


@dataclass(frozen=True)
class GpuGemmProblem:
    """float32[rows, k] times constant float32[k, n], multiplied as `math` says."""

    k: int
    n: int
    math: Math
    rows: int


class GpuGemmFamily(KernelFamily[GpuGemmProblem, Variant]):
    """Candidates differ in the tile of a block and of a warp, in stages and in slices of k."""

    name: ClassVar[str] = "gpu-gemm"
    compiler: ClassVar[str] = "graphopt.targets.cuda.nvcc"

    def default(self, problem: GpuGemmProblem) -> Variant:
        ranges = default_ranges(problem.n, problem.math)
        return next(v for limit, v in ranges if limit is None or problem.rows <= limit)

    def candidates(self, problem: GpuGemmProblem) -> Iterator[Variant]:
        if problem.n <= MAX_DOTS:
            yield from (RowDots(rows) for rows in (4, 8, 16))
            return
        if problem.rows <= _MOST_FEW:
            yield from (FewRows(*few) for few in _FEW if few[0] < 2 * problem.rows)
        for tile in (Tile(*sizes) for sizes in _TILES):
            fits = 4 * tile.shared_words(problem.math) <= shared_limit(problem.math)
            warps = problem.math != "Fp32" or tile.warp_columns >= 32
            within = tile.rows < 2 * max(problem.rows, 16) and tile.columns < 2 * max(problem.n, 16)
            if fits and warps and within:
                yield tile

    def parse(self, fields: dict[str, Any]) -> Variant:
        kinds = {3: FewRows, 1: RowDots}
        return kinds.get(len(fields), Tile)(**fields)

    def kernel(self, problem: GpuGemmProblem, params: Variant) -> Any:
        rounding = _TRIED if problem.math == "Int8" else None
        return gemm(problem.k, problem.n, problem.math, ((None, params),), rounding=rounding)

    def trials(self, problem: GpuGemmProblem, params: Variant) -> list[Trial]:
        rng = np.random.default_rng(0)
        weights = rng.standard_normal((problem.k, problem.n), np.float32)
        left = rng.standard_normal((problem.rows, problem.k), np.float32)
        row = np.zeros(problem.n, np.float32)
        if problem.math in ("Int8", "Codes"):
            codes = np.clip(np.rint(weights * 40), -127, 127).astype(np.int8)
            zero = _TRIED.zero
            if problem.math == "Codes":
                left, zero = _coded(problem, rng), SUMS
            inputs = [left, pack_codes(codes, zero), row + np.float32(0.02), row]
        else:
            inputs = [left, pack_weights(weights, problem.math), row]
        return [Trial(inputs, ((problem.rows, problem.n), "float32"))]

    def tolerance(self, problem: GpuGemmProblem) -> float:
        return _ROUNDING[problem.math]

    def version(self) -> str:
        device = hashlib.sha256(device_code().encode()).hexdigest()
        return f"{super().version()[:8]}{device[:8]}"


def _coded(problem: GpuGemmProblem, rng: np.random.Generator) -> np.ndarray:
    """uint32[rows, …]: codes as `row_codes` makes them, in ranges with 0 in the middle."""
    width = coded_width(problem.k)
    rows = rng.integers(0, 1 << 32, (problem.rows, width), dtype=np.uint32)
    rows[:, width - 4] = np.float32(0.03).view(np.uint32)
    rows[:, width - 3] = 0
    return rows


def ranges_of(chosen: Mapping[int, Variant]) -> tuple[Range, ...]:
    """Ranges of rows from what is best at single numbers of rows; they meet half way, by ratio."""
    ranges: list[Range] = []
    for rows, following in pairwise(sorted(chosen)):
        if chosen[rows] != chosen[following]:
            ranges.append((isqrt(rows * following), chosen[rows]))
    return (*ranges, (None, chosen[max(chosen)]))
