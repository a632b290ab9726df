"""Products of many pairs of computed matrices, neither of which is packed.

Columns of the second operand lie beside each other, so they are a vector's elements as they are. A
block of rows of the first keeps its sums in registers while it runs along K.
"""

from functools import cache

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.panels import Emitted, registers
from graphopt.targets.cpu.kernels.tiles import Tiles
from graphopt.targets.kernels import script
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes, extent

_ROWS = 6  # of a block, at most
_SUMS = 8  # vectors of sums that keep two units for fused multiply-adds busy


def block_height(n: int | None) -> int:
    """Rows of a block: as many in each if their number is known, whole blocks and single rows else.

    The last block overlaps the one before it.
    """
    return _ROWS if n is None else -(-n // -(-n // _ROWS))


def vectors_beside(height: int, lanes: int) -> int:
    """The vectors of columns that `height` rows are multiplied with at once, as registers allow.

    A vector that only one row is multiplied with needs none.
    """
    available, _ = registers(lanes)
    held = height + (height > 1)
    return max(1, min(_SUMS, (available - 1) // held))


def in_blocks(n: int | None, block: Emitted) -> Emitted:
    """For use in a kernel: `visit(tensors, rows)` calls `block(tensors, first, height)` for all.

    `rows` are `n` if that is known.
    """
    height = block_height(n)

    @inlined
    def visit(tensors, rows):
        if n is None:
            for i in range(rows // height):
                block(tensors, i * height, height)
            for i in range(rows % height):
                block(tensors, rows - 1 - i, 1)
        else:
            for i in range((n + height - 1) // height):
                block(tensors, T.min(i * height, n - height), height)

    return visit


@cache
def matrix_products(
    n: int | None,
    m: int,
    k: int | None,
    lanes: int,
    shared: bool = False,
    dtype: str = "float32",
) -> PrimFunc:
    """Kernel (x[b, n, k], y[b, k, m]) -> out[b, n, m]: out[b] = x[b] times y[b].

    All is `dtype`, float32 or float64; `b` is symbolic, and so are n and k if None. Sums run over
    k in order, in fused multiply-adds where the target has them, whatever `b` and `n` are.

    Args:
        lanes: elements in a vector register.
        shared: x is [1, n, k], the same for all.
    """
    align, rows = element_bytes(dtype), extent("rows", n)
    depth, zero = extent("depth", k), tirx.const(0, dtype)

    @inlined
    def block(tensors, first, count):
        x, y, out, b = T.meta_var(tensors)
        tiles = T.meta_var(Tiles(m, lanes, vectors_beside(count, lanes)))
        acc = T.alloc_buffer((count, tiles.vectors, tiles.lanes), dtype, scope="local")
        for tile in range(tiles.count):
            for r in T.unroll(count):
                for v in T.unroll(tiles.vectors):
                    for lane in T.vectorized(tiles.lanes):
                        acc[r, v, lane] = zero
            for kk in range(depth):
                for r in T.unroll(count):
                    for v in T.unroll(tiles.vectors):
                        for lane in T.vectorized(tiles.lanes):
                            acc[r, v, lane] = (
                                acc[r, v, lane]
                                + x[0 if shared else b, first + r, kk]
                                * y[b, kk, tiles.column(tile, v) + lane]
                            )
            for r in T.unroll(count):
                for v in T.unroll(tiles.vectors):
                    for lane in T.vectorized(tiles.lanes):
                        out[b, first + r, tiles.column(tile, v) + lane] = acc[r, v, lane]

    visit = in_blocks(n, block)

    @script.prim_func(private=True, s_tir=True)
    def matrix_products(left: T.handle, right: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        batch = T.int64()
        x = T.match_buffer(left, (1 if shared else batch, rows, depth), dtype, align=align)
        y = T.match_buffer(right, (batch, depth, m), dtype, align=align)
        out = T.match_buffer(out_, (batch, rows, m), dtype, align=align)
        for b in range(batch):
            visit((x, y, out, b), rows)

    return matrix_products
