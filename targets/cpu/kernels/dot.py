"""Dense layers of few columns, such as the heads of a model: products of rows along K.

A panel of `gemm` holds at least one vector of columns, most of which are padding here. This kernel
has the elements of a row in its vectors instead, and adds them up at the end.
"""

from functools import cache

import numpy as np
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.folding import reducing
from graphopt.targets.cpu.kernels.panels import MAX_PARTS, Columns, Emitted, whole_matrix
from graphopt.targets.kernels import script
from graphopt.targets.kernels.epilogue import PLAIN, Epilogue
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes

MOST_COLUMNS = 4  # with more, `gemm` is as fast


def suits(k: int, n: int, lanes: int) -> bool:
    """True if `dot` is faster than `gemm` for weights[k, n]."""
    return n <= MOST_COLUMNS and n * lanes <= k


def pack_columns(weights: np.ndarray) -> np.ndarray:
    """float32[K, N] as float32[N, K]."""
    return np.ascontiguousarray(weights.T, np.float32)


@cache
def dot(
    k: int, n: int, lanes: int, epilogue: Epilogue = PLAIN, parts: tuple[Columns, ...] = ()
) -> PrimFunc:
    """Kernel (x[M, k], weights[n, k], bias[n], columns[…, n], *operands) -> y[M, n], M symbolic.

    y = x @ weights.T + bias, all float32, after the epilogue.  Sums run over every `lanes`-th
    element of a row, then over halves of what that leaves, then the rest of the row.  NaN stays
    NaN.  With `parts` x is made of columns of several matrices, as for `gemm`.
    """
    data = parts or whole_matrix(k)
    wide = [part.source for part in data] + [1] * MAX_PARTS
    align, constants = element_bytes("float32"), max(1, epilogue.activation.columns)
    group = lanes  # rows whose results go through the activation together
    rows = _rows(data, n, lanes, group, epilogue)

    @script.prim_func(private=True, s_tir=True)
    def dot(
        x: T.handle, x1: T.handle, x2: T.handle, x3: T.handle,
        weights: T.handle, bias: T.handle,
        c: T.handle, p: T.handle, q: T.handle, y: T.handle
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        m, fewer, least = T.int64(), T.int64(), T.int64()
        left = T.match_buffer(x, (m, wide[0]), "float32", align=align)
        left1 = T.match_buffer(x1, (m, wide[1]), "float32", align=align)
        left2 = T.match_buffer(x2, (m, wide[2]), "float32", align=align)
        left3 = T.match_buffer(x3, (m, wide[3]), "float32", align=align)
        right = T.match_buffer(weights, (n, k), "float32", align=align)
        start = T.match_buffer(bias, (n,), "float32", align=align)
        columns = T.match_buffer(c, (constants, n), "float32", align=align)
        first = T.match_buffer(p, (epilogue.rows(0, m, fewer), n), "float32", align=align)
        second = T.match_buffer(q, (epilogue.rows(1, m, least), n), "float32", align=align)
        out = T.match_buffer(y, (m, n), "float32", align=align)
        given = T.meta_var((columns, first, second))
        matrices = T.meta_var((left, left1, left2, left3))
        for i in range(m // group):
            rows(matrices, right, start, given, out, i * group, group)
        rows(matrices, right, start, given, out, m - m % group, m % group)

    unused = ("left1", "left2", "left3")[len(data) - 1 :]
    return without_parameters(dot, *unused, *epilogue.unused)


def _rows(data: tuple[Columns, ...], n: int, lanes: int, group: int, epilogue: Epilogue) -> Emitted:
    """For use in a kernel: `rows(x, w, b, given, y, first, count)` computes rows of y.

    From `first` on, `count` of them, at most `group`; `x` are the matrices that have `data`, and
    `given` what the epilogue takes.
    """
    before = [sum(part.width for part in data[:at]) for at in range(len(data))]
    add_up = reducing(lanes)

    @inlined
    def vectors(x, w, acc, row, at):
        if at < len(data):
            start = T.meta_var(data[at].start)
            for c in range(data[at].width // lanes):
                for j in T.unroll(n):
                    acc[T.ramp(j * lanes, 1, lanes)] = (
                        acc[T.ramp(j * lanes, 1, lanes)]
                        + x[at][row, T.ramp(start + c * lanes, 1, lanes)]
                        * w[j, T.ramp(before[at] + c * lanes, 1, lanes)]
                    )

    @inlined
    def rest(x, w, acc, row, j, at):
        if at < len(data):
            whole = T.meta_var(data[at].width // lanes * lanes)
            start = T.meta_var(data[at].start)
            for i in range(data[at].width % lanes):
                acc[j * lanes] = (
                    acc[j * lanes] + x[at][row, start + whole + i] * w[j, before[at] + whole + i]
                )

    @inlined
    def rows(x, w, b, given, y, first, count):
        tile = T.alloc_buffer((n * group,), "float32")
        for i in T.vectorized(n * group):
            tile[i] = T.float32(0)
        for r in range(count):
            acc = T.alloc_buffer((n * lanes,), "float32")
            for j in T.unroll(n):
                acc[T.ramp(j * lanes, 1, lanes)] = T.Broadcast(T.float32(0), lanes)
            vectors(x, w, acc, first + r, 0)
            vectors(x, w, acc, first + r, 1)
            vectors(x, w, acc, first + r, 2)
            vectors(x, w, acc, first + r, 3)
            for j in T.unroll(n):
                add_up(acc, j * lanes)
                rest(x, w, acc, first + r, j, 0)
                rest(x, w, acc, first + r, j, 1)
                rest(x, w, acc, first + r, j, 2)
                rest(x, w, acc, first + r, j, 3)
                tile[j * group + r] = acc[j * lanes] + b[j]
                if epilogue.before > 0:
                    tile[j * group + r] = epilogue.begin(tile[j * group + r], given, first + r, j)
        for j in T.unroll(n):
            for r in T.vectorized(group):
                tile[j * group + r] = epilogue.activate(tile[j * group + r], given, j)
            for r in range(count):
                y[first + r, j] = epilogue.finish(tile[j * group + r], given, first + r, j)

    return rows
