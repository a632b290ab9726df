"""Products of many pairs of computed matrices whose number of columns is known at run time only.

A vector beyond the last column would read another row, or no memory, so columns of the second
operand are put side by side first, as many as a block of rows is multiplied with at once. That
also turns them around where they lie as rows, as those of two towers do.
"""

from functools import cache
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.folding import transposing
from graphopt.targets.cpu.kernels.matrix_products import (
    block_height,
    in_blocks,
    vectors_beside,
)
from graphopt.targets.cpu.kernels.panels import Emitted
from graphopt.targets.kernels import script
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes, extent


@cache
def packed_products(
    n: int | None,
    k: int,
    lanes: int,
    turned: bool = False,
    shared: bool = False,
    dtype: str = "float32",
) -> PrimFunc:
    """Kernel (x[b, n, k], y[b, k, m]) -> out[b, n, m]: out[b] = x[b] times y[b].

    All is `dtype`, float32 or float64; `b` and `m` are symbolic, and so is n if None. Sums run over
    k in order, in fused multiply-adds where the target has them, whatever `b`, `n` and `m` are.

    Args:
        lanes: elements in a vector register.
        turned: y is [b, m, k], of which rows are multiplied with rows.
        shared: x is [1, n, k], the same for all.
    """
    align, rows, columns = element_bytes(dtype), extent("rows", n), tirx.Var("columns", "int64")
    side = vectors_beside(block_height(n), lanes)
    pack = _packing(k, lanes, turned, dtype)
    visit = in_blocks(n, _multiplying(k, lanes, shared, dtype))

    @inlined
    def strip(x, y, out, panel, b, column, vectors, whole):
        """All rows of out[b], `vectors` of columns from `column` on; `whole` if all of them are."""
        pack(panel, y, b, column, vectors, columns, whole)
        visit((x, out, panel, b, column, columns, vectors, whole), rows)

    @script.prim_func(private=True, s_tir=True)
    def packed_products(left: T.handle, right: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        batch = T.int64()
        x = T.match_buffer(left, (1 if shared else batch, rows, k), dtype, align=align)
        y = T.match_buffer(
            right, (batch, columns, k) if turned else (batch, k, columns), dtype, align=align
        )
        out = T.match_buffer(out_, (batch, rows, columns), dtype, align=align)
        panel = T.alloc_buffer((k * side * lanes,), dtype)
        for b in range(batch):
            if columns < lanes:
                if columns > 0:
                    strip(x, y, out, panel, b, 0, 1, False)
            else:
                for i in range(columns // (side * lanes)):
                    strip(x, y, out, panel, b, i * side * lanes, side, True)
                for i in range((columns % (side * lanes) + lanes - 1) // lanes):
                    first = T.meta_var(columns - columns % (side * lanes) + i * lanes)
                    strip(x, y, out, panel, b, T.min(first, columns - lanes), 1, True)

    return packed_products


def _packing(k: int, lanes: int, turned: bool, dtype: str) -> Emitted:
    """For use in a kernel: `pack(panel, y, b, column, vectors, columns, whole)`.

    panel[k, vectors, lanes], flat, becomes as many columns of y[b], from `column` on; unless the
    vectors are `whole`, those beyond the last of all `columns` are copies of it.
    """
    width = min(lanes, 1 << (k.bit_length() - 1))
    transpose = transposing(width, dtype)

    def within(column: Any, columns: Any, whole: bool) -> Any:
        return column if whole else T.min(column, columns - 1)

    @inlined
    def turn(panel, y, b, column, at, part, row, columns, whole):
        """`width` elements, from part * width on, of as many rows of y."""
        block = T.alloc_buffer((width * width,), dtype)
        for r in T.unroll(width):
            block[T.ramp(r * width, 1, width)] = y[
                b, within(column + r, columns, whole), T.ramp(part * width, 1, width)
            ]
        transpose(block)
        for r in T.unroll(width):
            panel[T.ramp((part * width + r) * row + at, 1, width)] = block[
                T.ramp(r * width, 1, width)
            ]

    @inlined
    def pack(panel, y, b, column, vectors, columns, whole):
        row = T.meta_var(vectors * lanes)
        if turned:
            for group in range(row // width):
                for part in range(k // width):
                    turn(
                        panel,
                        y,
                        b,
                        column + group * width,
                        group * width,
                        part,
                        row,
                        columns,
                        whole,
                    )
            for d in range(k % width):
                for lane in range(row):
                    panel[(k - 1 - d) * row + lane] = y[
                        b, within(column + lane, columns, whole), k - 1 - d
                    ]
        else:
            for kk in range(k):
                for lane in T.vectorized(row):
                    panel[kk * row + lane] = y[b, kk, within(column + lane, columns, whole)]

    return pack


def _multiplying(k: int, lanes: int, shared: bool, dtype: str) -> Emitted:
    """For use in a kernel: `multiply(tensors, first, count)` computes `count` rows of a strip."""
    zero = tirx.const(0, dtype)

    @inlined
    def multiply(tensors, first, count):
        x, out, panel, b, column, columns, vectors, whole = T.meta_var(tensors)
        acc = T.alloc_buffer((count * vectors * lanes,), dtype, scope="local")
        for part in T.unroll(count * vectors):
            acc[T.ramp(part * lanes, 1, lanes)] = T.Broadcast(zero, lanes)
        for kk in range(k):
            for r in T.unroll(count):
                for v in T.unroll(vectors):
                    at = T.meta_var(T.ramp((r * vectors + v) * lanes, 1, lanes))
                    acc[at] = (
                        acc[at]
                        + T.Broadcast(x[0 if shared else b, first + r, kk], lanes)
                        * panel[T.ramp((kk * vectors + v) * lanes, 1, lanes)]
                    )
        for r in T.unroll(count):
            if whole:
                for v in T.unroll(vectors):
                    out[b, first + r, T.ramp(column + v * lanes, 1, lanes)] = acc[
                        T.ramp((r * vectors + v) * lanes, 1, lanes)
                    ]
            else:
                for lane in range(columns):
                    out[b, first + r, lane] = acc[r * lanes + lane]

    return multiply
