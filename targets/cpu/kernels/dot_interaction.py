"""Dot products of chosen pairs of the feature vectors of a sample, as DLRM takes them.

As many pairs as a vector has lanes are computed together, one vector of partial sums each.
"""

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.folding import folding
from graphopt.targets.cpu.kernels.rows import copy_row
from graphopt.targets.kernels import script
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes

_UNROLLED = 8  # vectors of one feature; the code of longer ones is a loop


@cache
def dot_interaction(features: int, dim: int, pairs: int, beside: int, lanes: int) -> PrimFunc:
    """Kernel (x[n, features, dim], left[pairs], right[pairs], head[n, beside]) -> out[n, …].

    out[n, beside + pairs] = head, then x[:, left[p]] . x[:, right[p]] for each pair. float32, the
    positions int32 and not checked, `n` symbolic. Without `beside` there is no `head`.

    Args:
        lanes: float32 elements in a vector register.
    """
    align = element_bytes("float32")
    width = min(lanes, dim & -dim, 1 << (pairs.bit_length() - 1))
    chunks, columns = dim // width, beside + pairs

    @inlined
    def add_product(acc, at, x, n, a, b, chunk):
        for lane in T.vectorized(width):
            acc[at * width + lane] = (
                acc[at * width + lane]
                + x[n, a, chunk * width + lane] * x[n, b, chunk * width + lane]
            )

    @inlined
    def multiply(acc, at, x, n, a, b):
        for lane in T.vectorized(width):
            acc[at * width + lane] = x[n, a, lane] * x[n, b, lane]
        if chunks <= _UNROLLED:
            for chunk in T.unroll(1, chunks):
                add_product(acc, at, x, n, a, b, chunk)
        else:
            for chunk in range(1, chunks):
                add_product(acc, at, x, n, a, b, chunk)

    fold = folding(width)

    @script.prim_func(private=True, s_tir=True)
    def dot_interaction(
        features_: T.handle, left_: T.handle, right_: T.handle, head_: T.handle, out_: T.handle
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        samples = T.int64()
        x = T.match_buffer(features_, (samples, features, dim), "float32", align=align)
        left = T.match_buffer(left_, (pairs,), "int32", align=align)
        right = T.match_buffer(right_, (pairs,), "int32", align=align)
        head = T.match_buffer(head_, (samples, max(beside, 1)), "float32", align=align)
        out = T.match_buffer(out_, (samples, columns), "float32", align=align)
        for n in range(samples):
            acc = T.alloc_buffer((width * width,), "float32", scope="local")
            if beside > 0:
                copy_row(out, n, head, n, beside, lanes)
            for group in range((pairs + width - 1) // width):
                first = T.min(group * width, pairs - width)
                for p in T.unroll(width):
                    multiply(acc, p, x, n, left[first + p], right[first + p])
                fold(acc)
                for lane in T.vectorized(width):
                    out[n, beside + first + lane] = acc[lane]

    return dot_interaction if beside else without_parameters(dot_interaction, "head")
