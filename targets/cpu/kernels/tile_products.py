"""Products of rows of words with packed columns, by tiles of AMX.

32 rows and columns take 2 x 2 tiles of sums, two of data and two of weights, as Intel's
optimization manual has it: each tile that is loaded is multiplied twice. The last 16 rows overlap
those before, so that all rows are added up by the same instructions, in the same order.

What becomes of sums is computed a row at a time beside the products of the next 32 rows: after all
of them it would take the place of what a core looks ahead, and tiles would wait for it.
"""

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from graphopt.targets.cpu.kernels.amx import DATA, TILE, WEIGHTS, WORD, Amx, tile_number
from graphopt.targets.cpu.kernels.panels import Emitted, GemmParams, rows_beside
from graphopt.targets.kernels.script import inlined

_TALL = 2 * TILE
SUMS = _TALL * 2 * TILE  # of a block at most


def packed_depth(words: int) -> int:
    """Words along K of weights packed for rows of `words`: whole tiles, unless one is enough."""
    return words if words <= TILE else -(-words // TILE) * TILE


def tile_params(n: int) -> GemmParams:
    """Parameters for `n` columns: vectors of a panel are the columns of tiles, two or one."""
    vectors = 1 if n <= TILE else 2
    return GemmParams(TILE, vectors, min(12, rows_beside(vectors, TILE)))


def multiplying(
    amx: Amx, instruction: str, words: int, vectors: int, finish: Emitted | None = None
) -> Emitted:
    """For use in a kernel: `multiply(operands, panel, sums, at, height, pending, before)`.

    Sums[height, 16 * vectors], flat from `at` on, are those of `height` (16 or 32) rows of data,
    `words` in each, times weights[panel, packed_depth(words), 16 * vectors]; `operands` are the
    data, the first row and the weights. If rows are not of whole tiles, the last tile overlaps the
    one before, and what they share multiplies weights of zeros.

    Meanwhile `finish(*before, row)` is called for each row of the block before if it is `pending`.

    Raises:
        ValueError: there are more than two `vectors`.
    """
    if vectors > 2:
        raise ValueError(f"a panel for tiles has one or two vectors, not {vectors}")
    width, steps = TILE * vectors, -(-words // TILE)
    last = max(0, words - TILE)  # where the last tile of a row begins
    each = -(-_TALL // steps)  # rows that are finished in a step
    busy = -(-_TALL // each)

    @inlined
    def step(operands, panel, height, kk):
        data, first, weights = T.meta_var(operands)
        for i in T.unroll(height // TILE):
            at = T.meta_var(T.address_of(data[first + TILE * i, T.min(TILE * kk, last)]))
            stride = T.meta_var(T.int64(WORD * data.shape[1]))
            amx("tileloadd64", tile_number(DATA + i), at, stride)
        for j in T.unroll(vectors):
            at = T.meta_var(T.address_of(weights[panel, TILE * kk, TILE * j]))
            amx("tileloadd64", tile_number(WEIGHTS + j), at, T.int64(WORD * width))
            for i in T.unroll(height // TILE):
                tiles = T.meta_var((i * vectors + j, DATA + i, WEIGHTS + j))
                amx(instruction, *map(tile_number, tiles))

    @inlined
    def multiply(operands, panel, sums, at, height, pending=False, before=()):
        for tile in T.unroll(height // TILE * vectors):
            amx("tilezero", tile_number(tile))
        for kk in range(busy):
            if pending:
                for r in T.unroll(each):
                    if kk * each + r < _TALL:
                        finish(*before, kk * each + r)
            step(operands, panel, height, kk)
        for kk in range(steps - busy):
            step(operands, panel, height, busy + kk)
        for i in T.unroll(height // TILE):
            for j in T.unroll(vectors):
                place = T.meta_var(T.address_of(sums[at + TILE * (width * i + j)]))
                amx("tilestored64", tile_number(i * vectors + j), place, T.int64(WORD * width))

    return multiply


def by_tiles(
    amx: Amx,
    instruction: str,
    shape: tuple[int, int],
    params: GemmParams,
    operands: Callable[[Any, Any], tuple[Any, Any, Any]],
    finish: Emitted,
    dtype: str,
) -> Emitted:
    """For use in a kernel: `visit(tensors, rows, before)` computes all panels of `rows` rows.

    Args:
        shape: words of a row of data, and columns.
        operands: from the tensors and a row, the data, where that row is in them, the weights.
        finish: called as `finish(tensors, first, panel, sums, at, row)`, what becomes of the sums
            of row `first + row` of a panel, sums[at + row * width:][:width].
        dtype: of the sums.

    Rows that are there are others that the kernel is called for, or `before` the first one. Of
    fewer than 16 in all it is the first ones that are.
    """
    words, n = shape
    panels = params.panels(n)
    multiply = multiplying(amx, instruction, words, params.vectors, finish)

    @inlined
    def tall(tensors, rows, panel, i, sums):
        """32 rows, beside what is left to do of those before, which may be the panel before's."""
        blocks = T.meta_var(rows // _TALL)
        at = T.meta_var((panel * blocks + i) % 2 * SUMS)
        row = T.meta_var(T.if_then_else(i > 0, i - 1, blocks - 1) * _TALL)
        panel_before = T.meta_var(T.if_then_else(i > 0, panel, panel - 1))
        before = T.meta_var((tensors, row, panel_before, sums, SUMS - at))
        pending = T.meta_var(panel + i > 0)
        multiply(operands(tensors, _TALL * i), panel, sums, at, _TALL, pending, before)

    @inlined
    def short(tensors, rows, panel, i, before, sums):
        """16 rows or fewer."""
        begin = T.meta_var(rows - rows % _TALL + TILE * i)
        first = T.meta_var(T.max(-before, T.min(begin, rows - TILE)))
        multiply(operands(tensors, first), panel, sums, 2 * SUMS, TILE)
        for r in range(begin - first, T.min(T.int64(TILE), rows - first)):
            finish(tensors, first, panel, sums, 2 * SUMS, r)

    @inlined
    def visit(tensors, rows, before):
        sums = T.alloc_buffer((3 * SUMS,), dtype, scope="local")
        for panel in range(panels):
            for i in range(rows // _TALL):
                tall(tensors, rows, panel, i, sums)
            for i in range((rows % _TALL + TILE - 1) // TILE):
                short(tensors, rows, panel, i, before, sums)
        for r in range(T.if_then_else(rows >= _TALL, _TALL, 0)):
            blocks = T.meta_var(rows // _TALL)
            at = T.meta_var((panels * blocks - 1) % 2 * SUMS)
            finish(tensors, rows - rows % _TALL - _TALL, panels - 1, sums, at, r)

    return visit
