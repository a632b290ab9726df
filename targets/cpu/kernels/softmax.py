"""Softmax and its logarithm along rows, a vector at a time."""

from __future__ import annotations

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.folding import reducing
from graphopt.targets.cpu.kernels.panels import Emitted
from graphopt.targets.cpu.kernels.row_vectors import SIDE, RowVectors, greatest
from graphopt.targets.kernels import script
from graphopt.targets.kernels.elementary import exp_of_negative
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes, extent


@cache
def softmax(dim: int | None, lanes: int, *, logarithm: bool = False) -> PrimFunc:
    """Kernel (x[rows, dim]) -> y[rows, dim], `rows` symbolic, and so is `dim` if None.

    y = exp(x - max) / sum of exp(x - max) over each row, or with `logarithm` x - max - log(sum).
    float32, the sums in as many parts as a vector has lanes. NaN spreads over its row, and so do
    inf and a row of -inf alone.

    Args:
        lanes: float32 elements in a vector register.
    """
    align, columns = element_bytes("float32"), extent("columns", dim)
    width = RowVectors.width_for(dim, lanes)
    by_vectors, one_by_one = (_of_row(RowVectors(columns, w), logarithm) for w in (width, 1))

    @script.prim_func(private=True, s_tir=True)
    def softmax(x_: T.handle, y_: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, columns), "float32", align=align)
        y = T.match_buffer(y_, (rows, columns), "float32", align=align)
        with T.sblock("softmax"):  # Relax demands one of a kernel with one input
            for row in range(rows):
                if columns >= width:
                    by_vectors(y, x, row)
                else:
                    one_by_one(y, x, row)

    return softmax


def _of_row(vectors: RowVectors, logarithm: bool) -> Emitted:
    """For use in a kernel: `normalize(y, x, row)`."""
    width, chunks, rest = vectors.width, vectors.chunks, vectors.rest
    top_of = greatest(vectors, T.max, lambda x, row, column: x[row, column])
    add_up = reducing(width)

    @inlined
    def total_of(total, end, y, x, row, top):
        """`end` becomes the powers of the last vector, y those of the others unless `logarithm`."""
        for lane in T.vectorized(width):
            total[lane] = T.float32(0)
        for chunk in range(chunks):
            power = T.alloc_buffer((width,), "float32")
            for lane in T.vectorized(width):
                power[lane] = exp_of_negative(x[row, chunk * width + lane] - top[0])
            for lane in T.vectorized(width):
                total[lane] = total[lane] + power[lane]
            if not logarithm:
                for lane in T.vectorized(width):
                    y[row, chunk * width + lane] = power[lane]
        if vectors.ends:
            for lane in T.vectorized(width):
                end[lane] = exp_of_negative(x[row, vectors.last + lane] - top[0])
            for lane in T.vectorized(width):
                left = T.meta_var(T.Cast("int64", lane) >= T.int64(width) - rest)
                total[lane] = total[lane] + T.Select(left, end[lane], T.float32(0))
        add_up(total, 0)

    @inlined
    def scale(y, row, factor, end):
        for chunk in range(chunks):
            for lane in T.vectorized(width):
                column = T.meta_var(chunk * width + lane)
                y[row, column] = y[row, column] * factor
        if vectors.ends:
            for lane in T.vectorized(width):
                y[row, vectors.last + lane] = end[lane] * factor

    @inlined
    def shift(y, x, row, top, logarithm_of_total):
        for chunk in range(chunks):
            for lane in T.vectorized(width):
                column = T.meta_var(chunk * width + lane)
                y[row, column] = x[row, column] - top[0] - logarithm_of_total
        if vectors.ends:
            for lane in T.vectorized(width):
                column = T.meta_var(vectors.last + lane)
                y[row, column] = x[row, column] - top[0] - logarithm_of_total

    @inlined
    def normalize(y, x, row):
        top = T.alloc_buffer((width * SIDE,), "float32")
        total = T.alloc_buffer((width,), "float32")
        end = T.alloc_buffer((width,), "float32")
        top_of(top, x, row)
        total_of(total, end, y, x, row, top)
        if logarithm:
            total[0] = T.log(total[0])
            shift(y, x, row, top, total[0])
        else:
            total[0] = T.float32(1) / total[0]
            scale(y, row, total[0], end)

    return normalize
