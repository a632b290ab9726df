"""Sums, means, norms and extremes of rows, by vectors.

TE's code for a reduction along the last axis is one element after the other, each waiting for the
one before, as LLVM may not reorder sums or what NaN decides.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.folding import reducing
from graphopt.targets.cpu.kernels.panels import Emitted
from graphopt.targets.cpu.kernels.row_vectors import SIDE, RowVectors
from graphopt.targets.kernels import script
from graphopt.targets.kernels.elementary import maximum
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes, extent


@dataclass(frozen=True)
class Reduction:
    """What is made of many float32.

    Attributes:
        start: the result of none.
        before: what is made of each element.
        combined: what is made of two.
        after: what is made of the result and the number of elements.
    """

    start: float
    before: Callable[[Any], Any] = lambda x: x
    combined: Callable[[Any, Any], Any] = operator.add
    after: Callable[[Any, Any], Any] = lambda x, count: x


REDUCTIONS = {
    "ReduceSum": Reduction(0.0),
    "ReduceMean": Reduction(0.0, after=lambda x, count: x / T.Cast("float32", count)),
    "ReduceSumSquare": Reduction(0.0, before=lambda x: x * x),
    "ReduceL1": Reduction(0.0, before=tirx.abs),
    "ReduceL2": Reduction(0.0, before=lambda x: x * x, after=lambda x, count: tirx.sqrt(x)),
    "ReduceMax": Reduction(float("-inf"), combined=maximum),
    "ReduceMin": Reduction(float("-inf"), operator.neg, maximum, lambda x, count: -x),
}


@cache
def reduce_rows(op: str, dim: int | None, lanes: int) -> PrimFunc:
    """Kernel (x[rows, dim]) -> y[rows], `rows` symbolic, and so is `dim` if None.

    y is what `op`, one of REDUCTIONS, makes of each row, float32: in SIDE parts of as many as a
    vector has lanes, whatever `rows` is. NaN spreads.

    Args:
        lanes: float32 elements in a vector register.
    """
    align, columns = element_bytes("float32"), extent("columns", dim)
    width = RowVectors.width_for(dim, lanes)
    by_vectors, one_by_one = (_of_row(RowVectors(columns, w), REDUCTIONS[op]) for w in (width, 1))

    @script.prim_func(private=True, s_tir=True)
    def reduce_rows(x_: T.handle, y_: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, columns), "float32", align=align)
        y = T.match_buffer(y_, (rows,), "float32", align=align)
        with T.sblock("reduce_rows"):  # Relax demands one of a kernel with one input
            for row in range(rows):
                if columns >= width:
                    by_vectors(y, x, row)
                else:
                    one_by_one(y, x, row)

    return reduce_rows


def _of_row(vectors: RowVectors, reduction: Reduction) -> Emitted:
    """For use in a kernel: `reduce(y, x, row)`."""
    width, chunks, rest = vectors.width, vectors.chunks, vectors.rest
    before, combined, start = reduction.before, reduction.combined, reduction.start
    side = 1 if isinstance(chunks, int) and chunks < 2 * SIDE else SIDE
    groups, join = chunks // side, reducing(width, combined)

    @inlined
    def reduce(y, x, row):
        acc = T.alloc_buffer((width * side,), "float32")
        for lane in T.vectorized(width * side):
            acc[lane] = T.float32(start)
        for group in range(groups):
            for part in T.unroll(side):
                for lane in T.vectorized(width):
                    at = T.meta_var(part * width + lane)
                    value = T.meta_var(before(x[row, group * (side * width) + at]))
                    acc[at] = combined(acc[at], value)
        for chunk in range(chunks - groups * side):
            for lane in T.vectorized(width):
                column = T.meta_var((groups * side + chunk) * width + lane)
                acc[lane] = combined(acc[lane], before(x[row, column]))
        if vectors.ends:
            for lane in T.vectorized(width):
                left = T.meta_var(T.Cast("int64", lane) >= T.int64(width) - rest)
                value = T.meta_var(before(x[row, vectors.last + lane]))
                acc[lane] = combined(acc[lane], T.Select(left, value, T.float32(start)))
        for part in T.unroll(side - 1):
            for lane in T.vectorized(width):
                acc[lane] = combined(acc[lane], acc[(part + 1) * width + lane])
        join(acc, 0)
        y[row] = reduction.after(acc[0], vectors.columns)

    return reduce
