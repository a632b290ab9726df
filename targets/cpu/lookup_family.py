"""Lookups of rows, and of rows to be pooled, as families of kernels that can be tuned.

A request's rows are seldom in a cache, but a trial that looks the same few up again and again finds
them there. So trials look up more than caches hold, however small the batches to come.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphopt.targets.cpu.kernels.embedding_bag import PoolingParams, fixed_bag, pooling_params
from graphopt.targets.cpu.kernels.gather import gather_rows
from graphopt.targets.cpu.kernels.rows import LookupParams, lookup_params
from graphopt.targets.kernels.pooling import Mode, Pooling
from graphopt.targets.kernels.storage import element_bytes
from graphopt.targets.tuning.family import KernelFamily, Trial

LEAST_BYTES = 256 << 10  # of a table that is tuned; smaller ones stay in a cache
_MOST_BYTES = 64 << 20  # of a table in a trial
_LOOKUPS = 1 << 16
_AHEAD = (0, 4, 8, 16, 32)
_VECTORS = (2, 4, 8)


@dataclass(frozen=True)
class LookupProblem:
    """Rows of table[rows, width] by ids of dtype `index`; `rows` at most what trials have."""

    rows: int
    width: int
    dtype: str
    index: str

    @staticmethod
    def of(rows: int, width: int, dtype: str, index: str) -> LookupProblem:
        """The problem that stands for all larger tables too."""
        most = _MOST_BYTES // max(1, width * element_bytes(dtype))
        return LookupProblem(min(rows, most), width, dtype, index)


@dataclass(frozen=True)
class PoolingProblem:
    """Bags of `length` rows of float32[rows, dim] by ids of dtype `index`."""

    rows: int
    dim: int
    index: str
    length: int
    mode: Mode


class LookupFamily(KernelFamily[LookupProblem, LookupParams]):
    """Candidates differ in how long before a row is read it is asked for."""

    name: ClassVar[str] = "lookup"

    def default(self, problem: LookupProblem) -> LookupParams:
        return lookup_params(problem.rows * problem.width * element_bytes(problem.dtype))

    def candidates(self, problem: LookupProblem) -> Iterator[LookupParams]:
        return map(LookupParams, _AHEAD)

    def parse(self, fields: dict[str, Any]) -> LookupParams:
        return LookupParams(**fields)

    def kernel(self, problem: LookupProblem, params: LookupParams) -> Any:
        shape = (problem.rows, problem.width)
        return gather_rows(*shape, problem.dtype, problem.index, params=params)

    def trials(self, problem: LookupProblem, params: LookupParams) -> list[Trial]:
        shape = (problem.rows, problem.width)
        ids = _ids(problem.rows, (_LOOKUPS,), problem.index)
        output = ((_LOOKUPS, problem.width), problem.dtype)
        return [Trial([_table(*shape, problem.dtype), ids], output)]


class PoolingFamily(KernelFamily[PoolingProblem, PoolingParams]):
    """Candidates also differ in how much of a row is added up at once."""

    name: ClassVar[str] = "pooled-lookup"

    def default(self, problem: PoolingProblem) -> PoolingParams:
        return pooling_params(4 * problem.rows * problem.dim)

    def candidates(self, problem: PoolingProblem) -> Iterator[PoolingParams]:
        default = self.default(problem)
        widths = [v for v in _VECTORS if 16 * v < 2 * problem.dim] or [default.vectors]
        yield from (PoolingParams(ahead, default.vectors) for ahead in _AHEAD)
        yield from (PoolingParams(default.ahead, vectors) for vectors in widths)

    def parse(self, fields: dict[str, Any]) -> PoolingParams:
        return PoolingParams(**fields)

    def kernel(self, problem: PoolingProblem, params: PoolingParams) -> Any:
        shape, pooling = (problem.rows, problem.dim), Pooling(problem.mode)
        return fixed_bag(*shape, problem.length, "float32", problem.index, pooling, params)

    def trials(self, problem: PoolingProblem, params: PoolingParams) -> list[Trial]:
        bags = max(1, _LOOKUPS // problem.length)
        ids = _ids(problem.rows, (bags, problem.length), problem.index)
        table = _table(problem.rows, problem.dim, "float32")
        return [Trial([table, ids], ((bags, problem.dim), "float32"))]


def _table(rows: int, width: int, dtype: str) -> np.ndarray:
    """Rows that differ from their neighbours, in memory that has been written to."""
    table = np.empty((rows, width), dtype)
    table[:] = (np.arange(rows) % 97)[:, None]
    return table


def _ids(rows: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, rows, shape).astype(dtype)
