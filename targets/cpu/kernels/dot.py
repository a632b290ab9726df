"""Dense layers of few columns, such as the heads of a model: products of rows along K.

A panel of `gemm` holds at least one vector of columns, most of which are padding here. This kernel
has the elements of a row in its vectors instead, and adds them up at the end.
"""

from functools import cache

import numpy as np
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.folding import reducing
from graphopt.targets.kernels import script
from graphopt.targets.kernels.epilogue import PLAIN, Epilogue
from graphopt.targets.kernels.inlining import inlined
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.storage import element_bytes

MOST_COLUMNS = 4  # with more, `gemm` is as fast


def suits(k: int, n: int, lanes: int) -> bool:
    """True if `dot` is faster than `gemm` for weights[k, n]."""
    return n <= MOST_COLUMNS and n * lanes <= k


def pack_columns(weights: np.ndarray) -> np.ndarray:
    """float32[K, N] as float32[N, K]."""
    return np.ascontiguousarray(weights.T, np.float32)


@cache
def dot(k: int, n: int, lanes: int, epilogue: Epilogue = PLAIN) -> PrimFunc:
    """Kernel (x[M, k], weights[n, k], bias[n], columns[…, n], *operands) -> y[M, n], M symbolic.

    y = x @ weights.T + bias, all float32, after the epilogue.  Sums run over every `lanes`-th
    element of a row, then over halves of what that leaves, then the rest of the row.  NaN stays
    NaN.
    """
    align, constants = element_bytes("float32"), max(1, epilogue.activation.columns)
    group = lanes  # rows whose results go through the activation together
    whole, tail, add_up = k // lanes, k % lanes, reducing(lanes)

    @inlined
    def rows(x, w, b, given, y, first, count):
        tile = T.alloc_buffer((n * group,), "float32", scope="local")
        for i in T.vectorized(n * group):
            tile[i] = T.float32(0)
        for r in range(count):
            acc = T.alloc_buffer((n * lanes,), "float32", scope="local")
            for j in T.unroll(n):
                acc[T.ramp(j * lanes, 1, lanes)] = T.Broadcast(T.float32(0), lanes)
            for c in range(whole):
                for j in T.unroll(n):
                    acc[T.ramp(j * lanes, 1, lanes)] = (
                        acc[T.ramp(j * lanes, 1, lanes)]
                        + x[first + r, T.ramp(c * lanes, 1, lanes)]
                        * w[j, T.ramp(c * lanes, 1, lanes)]
                    )
            for j in T.unroll(n):
                add_up(acc, j * lanes)
                for i in range(tail):
                    acc[j * lanes] = (
                        acc[j * lanes] + x[first + r, whole * lanes + i] * w[j, whole * lanes + i]
                    )
                tile[j * group + r] = acc[j * lanes] + b[j]
                if epilogue.before > 0:
                    tile[j * group + r] = epilogue.begin(tile[j * group + r], given, first + r, j)
        for j in T.unroll(n):
            for r in T.vectorized(group):
                tile[j * group + r] = epilogue.activate(tile[j * group + r], given, j)
            for r in range(count):
                y[first + r, j] = epilogue.finish(tile[j * group + r], given, first + r, j)

    @script.prim_func(private=True, s_tir=True)
    def dot(
        x: T.handle, weights: T.handle, bias: T.handle,
        c: T.handle, p: T.handle, q: T.handle, y: T.handle
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        m, fewer, least = T.int64(), T.int64(), T.int64()
        left = T.match_buffer(x, (m, k), "float32", align=align)
        right = T.match_buffer(weights, (n, k), "float32", align=align)
        start = T.match_buffer(bias, (n,), "float32", align=align)
        columns = T.match_buffer(c, (constants, n), "float32", align=align)
        first = T.match_buffer(p, (epilogue.rows(0, m, fewer), n), "float32", align=align)
        second = T.match_buffer(q, (epilogue.rows(1, m, least), n), "float32", align=align)
        out = T.match_buffer(y, (m, n), "float32", align=align)
        for i in range(m // group):
            rows(left, right, start, (columns, first, second), out, i * group, group)
        rows(left, right, start, (columns, first, second), out, m - m % group, m % group)

    return without_parameters(dot, *epilogue.unused)
