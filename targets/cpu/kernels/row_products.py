"""Dot products of all rows of one matrix with all rows of another, for each of many such pairs.

Neither is packed: both are computed, and read only once where they are large. A row of the first
is multiplied with as many rows of the second as a vector has lanes, one vector of sums for each.
"""

from functools import cache

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.folding import folding
from graphopt.targets.kernels import script
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes


@cache
def row_products(n: int | None, m: int, k: int, lanes: int) -> PrimFunc:
    """Kernel (x[b, n, k], y[b, m, k]) -> out[b, n, m]: out[b] = x[b] times y[b] transposed.

    float32; `b` is symbolic, and so is n if None. Sums run over every `width`-th element of the
    rows, then over halves of what that leaves, then the rest of the rows, whatever `b` and `n` are;
    `width` is the largest power of two that neither `lanes` nor m nor k is below.
    """
    align, width = element_bytes("float32"), 1 << (min(lanes, m, k).bit_length() - 1)
    rows = tirx.Var("rows", "int64") if n is None else n
    chunks, rest, fold = k // width, k % width, folding(width)

    @inlined
    def multiply(acc, x, y, b, i, first):
        for p in T.unroll(width):
            for lane in T.vectorized(width):
                acc[p * width + lane] = x[b, i, lane] * y[b, first + p, lane]
        for chunk in range(1, chunks):
            for p in T.unroll(width):
                for lane in T.vectorized(width):
                    acc[p * width + lane] = (
                        acc[p * width + lane]
                        + x[b, i, chunk * width + lane] * y[b, first + p, chunk * width + lane]
                    )

    @script.prim_func(private=True, s_tir=True)
    def row_products(left: T.handle, right: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        batch = T.int64()
        x = T.match_buffer(left, (batch, rows, k), "float32", align=align)
        y = T.match_buffer(right, (batch, m, k), "float32", align=align)
        out = T.match_buffer(out_, (batch, rows, m), "float32", align=align)
        for b, i, group in T.grid(batch, rows, (m + width - 1) // width):
            first = T.min(group * width, m - width)  # the last rows overlap those before
            acc = T.alloc_buffer((width * width,), "float32", scope="local")
            multiply(acc, x, y, b, i, first)
            fold(acc)
            for c in range(k - rest, k):
                for lane in T.unroll(width):
                    acc[lane] = acc[lane] + x[b, i, c] * y[b, first + lane, c]
            for lane in T.vectorized(width):
                out[b, i, first + lane] = acc[lane]

    return row_products
