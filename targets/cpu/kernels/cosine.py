"""Cosines of the angles between pairs of vectors, in one pass over both."""

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.folding import reducing
from graphopt.targets.kernels import script
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes


@cache
def cosine(left: int, right: int, dim: int, epsilon: float, jointly: bool, lanes: int) -> PrimFunc:
    """Kernel (a[n, left, dim], b[n, right, dim]) -> out[n, max(left, right)], `n` symbolic.

    out[:, k] = a . b / (max(|a|, epsilon) * max(|b|, epsilon)) of the vectors k of a and b, of
    which one may be alone; `jointly`, the norms are multiplied first. float32, the sums in as many
    parts as a vector has lanes.

    Args:
        lanes: float32 elements in a vector register.
    """
    align, width = element_bytes("float32"), min(lanes, 1 << (dim.bit_length() - 1))
    chunks, rest, count = dim // width, dim % width, max(left, right)
    add_up = reducing(width)

    @inlined
    def add_products(acc, x, y, n, i, j, first, size):
        for lane in T.vectorized(size):
            acc[lane] = acc[lane] + x[n, i, first + lane] * y[n, j, first + lane]

    def norms(first, second):
        least = T.float32(epsilon)
        if jointly:
            return T.max(T.sqrt(first * second), least)
        return T.max(T.sqrt(first), least) * T.max(T.sqrt(second), least)

    @script.prim_func(private=True, s_tir=True)
    def cosine(a_: T.handle, b_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        samples = T.int64()
        a = T.match_buffer(a_, (samples, left, dim), "float32", align=align)
        b = T.match_buffer(b_, (samples, right, dim), "float32", align=align)
        out = T.match_buffer(out_, (samples, count), "float32", align=align)
        for n in range(samples):
            for k in range(count):
                dots = T.alloc_buffer((width,), "float32", scope="local")
                first = T.alloc_buffer((width,), "float32", scope="local")
                second = T.alloc_buffer((width,), "float32", scope="local")
                i = T.meta_var(0 if left == 1 else k)
                j = T.meta_var(0 if right == 1 else k)
                for lane in T.vectorized(width):
                    dots[lane] = T.float32(0)
                for lane in T.vectorized(width):
                    first[lane] = T.float32(0)
                for lane in T.vectorized(width):
                    second[lane] = T.float32(0)
                for chunk in range(chunks):
                    add_products(dots, a, b, n, i, j, chunk * width, width)
                    add_products(first, a, a, n, i, i, chunk * width, width)
                    add_products(second, b, b, n, j, j, chunk * width, width)
                add_up(dots, 0)
                add_up(first, 0)
                add_up(second, 0)
                for at in range(rest):
                    add_products(dots, a, b, n, i, j, chunks * width + at, 1)
                    add_products(first, a, a, n, i, i, chunks * width + at, 1)
                    add_products(second, b, b, n, j, j, chunks * width + at, 1)
                out[n, k] = dots[0] / norms(first[0], second[0])

    return cosine
