"""The packed GEMMs as families of kernels that can be tuned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphopt.targets.cpu.kernels.bf16_gemm import bf16_gemm, bf16_params, pack_bf16
from graphopt.targets.cpu.kernels.bfloat16 import Words
from graphopt.targets.cpu.kernels.gemm import gemm
from graphopt.targets.cpu.kernels.int8_gemm import int8_gemm, int8_params, pack_int8, pack_start
from graphopt.targets.cpu.kernels.panels import (
    MAX_ROWS,
    WIDEST_FAR,
    GemmParams,
    default_params,
    pack_bias,
    pack_weights,
    registers,
)
from graphopt.targets.cpu.kernels.row_codes import Quantization
from graphopt.targets.tuning.family import KernelFamily, Trial

MOST_ROWS = 4096  # a larger left operand takes long and tells nothing new


@dataclass(frozen=True)
class GemmProblem:
    """float32[rows, k] times constant float32[k, n], at each of several numbers of rows.

    Attributes:
        lanes: float32 elements in a vector register.
        far: whether weights come from memory each time, which trials do not show.
    """

    k: int
    n: int
    lanes: int
    rows: tuple[int, ...]
    far: bool = False


class GemmFamily(KernelFamily[GemmProblem, GemmParams]):
    """Candidates differ in the accumulators: vectors across the columns times rows."""

    name: ClassVar[str] = "gemm-float32"

    def default(self, problem: GemmProblem) -> GemmParams:
        return default_params(problem.n, problem.lanes, problem.k, problem.far)

    def candidates(self, problem: GemmProblem) -> Iterator[GemmParams]:
        """Those that fill at least half of the registers and pad at most a fourth more columns."""
        available, widest = registers(problem.lanes)
        widest = min(widest, WIDEST_FAR) if problem.far else widest
        padding = {
            v: problem.lanes * v * -(-problem.n // (problem.lanes * v))
            for v in range(1, widest + 1)
        }
        least = min(padding.values())
        for vectors in range(widest, 0, -1):
            if padding[vectors] > 1.25 * least:
                continue
            most = min(MAX_ROWS, (available - vectors - 1) // vectors)
            for rows in sorted({most, most - 1, most - 2, 8, 6, 4}, reverse=True):
                if 1 <= rows <= most and 2 * rows * vectors >= available // 2:
                    yield GemmParams(problem.lanes, vectors, rows)

    def parse(self, fields: dict[str, Any]) -> GemmParams:
        return GemmParams(**fields)

    def kernel(self, problem: GemmProblem, params: GemmParams) -> Any:
        return gemm(problem.k, problem.n, params, far=problem.far)

    def packed(self, weights: np.ndarray, params: GemmParams) -> np.ndarray:
        """float32[k, n] as the kernel reads it."""
        return pack_weights(weights, params)

    def trials(self, problem: GemmProblem, params: GemmParams) -> list[Trial]:
        rng = np.random.default_rng(0)
        weights = rng.standard_normal((problem.k, problem.n), np.float32)
        packed, bias = self.packed(weights, params), pack_bias(None, problem.n, params)
        sizes = sorted({min(rows, MOST_ROWS) for rows in problem.rows})
        left = rng.standard_normal((max(sizes), problem.k), np.float32)
        return [Trial([left[:m], packed, bias], ((m, problem.n), "float32")) for m in sizes]


class Bf16GemmFamily(GemmFamily):
    """The same for operands in bfloat16, multiplied by vectors: tiles have nothing to choose."""

    name: ClassVar[str] = "gemm-bfloat16"

    def __init__(self, words: Words) -> None:
        self.words = words

    def default(self, problem: GemmProblem) -> GemmParams:
        return bf16_params(problem.n, problem.lanes)

    def kernel(self, problem: GemmProblem, params: GemmParams) -> Any:
        return bf16_gemm(problem.k, problem.n, params, self.words, far=problem.far)

    def packed(self, weights: np.ndarray, params: GemmParams) -> np.ndarray:
        return pack_bf16(weights, params, self.words)


class Int8GemmFamily(GemmFamily):
    """The same for data that are rounded to 8 bits, and weights in 8 bits, without tiles."""

    name: ClassVar[str] = "gemm-int8"
    rounding: ClassVar[Quantization] = Quantization(1 / 32, 128)

    def default(self, problem: GemmProblem) -> GemmParams:
        return int8_params(problem.n, lanes=problem.lanes)

    def kernel(self, problem: GemmProblem, params: GemmParams) -> Any:
        return int8_gemm(problem.k, problem.n, self.rounding, params)

    def trials(self, problem: GemmProblem, params: GemmParams) -> list[Trial]:
        rng = np.random.default_rng(0)
        codes = rng.integers(-127, 128, (problem.k, problem.n), np.int8)
        scale = np.full(problem.n, 1e-3, np.float32)
        packed = [pack_int8(codes, params)]
        packed += [pack_start(codes, self.rounding.zero, params)]
        packed += [pack_bias(scale, problem.n, params), pack_bias(None, problem.n, params)]
        sizes = sorted({min(rows, MOST_ROWS) for rows in problem.rows})
        left = rng.standard_normal((max(sizes), problem.k), np.float32)
        return [Trial([left[:m], *packed], ((m, problem.n), "float32")) for m in sizes]
