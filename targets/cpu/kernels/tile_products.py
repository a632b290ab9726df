"""Products of rows of words with packed columns, by tiles of AMX.

Where there are 32 rows left, 2 x 2 tiles of sums share two of data and two of weights, as Intel's
optimization manual has it: each tile that is loaded is multiplied twice. 16 rows are multiplied
with up to four tiles of weights, as fewer sums than four would wait for each other. The last 16
overlap those before, so that all rows are added up by the same instructions, in the same order.
"""

from itertools import pairwise

from tvm.script import tirx as T

from graphopt.targets.cpu.kernels.amx import DATA, TILE, WEIGHTS, WORD, Amx, tile_number
from graphopt.targets.cpu.kernels.panels import Emitted, GemmParams, rows_beside
from graphopt.targets.kernels.script import inlined

_SUMS = 4  # tiles
MOST_SUMS = _SUMS * TILE * TILE
_WIDEST = 6
_PAIR, _ALONE = 64, 52
"""Cycles of a step that 32 rows take for two columns of tiles, and for one: four products of 16
cycles each, and two, of which the next wait for the results (Intel's optimization manual)."""


def packed_depth(words: int) -> int:
    """Words along K of weights packed for rows of `words`: whole tiles, unless one is enough."""
    return words if words <= TILE else -(-words // TILE) * TILE


def tile_params(n: int) -> GemmParams:
    """Parameters for `n` columns: vectors of a panel are the columns of tiles."""

    def time(vectors: int) -> int:
        return -(-n // (TILE * vectors)) * (_PAIR * (vectors // 2) + _ALONE * (vectors % 2))

    vectors = min(range(1, _WIDEST + 1), key=lambda v: (time(v), -v))
    return GemmParams(TILE, vectors, min(12, rows_beside(vectors, TILE)))


def by_tiles(amx: Amx, instruction: str, words: int, vectors: int, then: Emitted) -> Emitted:
    """For use in a kernel: `multiply(data, first, weights, panel, sums, height, more)`.

    `height` (16 or 32) rows of data[rows, stride] from `first` on, `words` in each, times
    weights[panel, packed_depth(words), 16 * vectors]. If rows of data are not of whole tiles, the
    last one overlaps the one before, and what they share multiplies weights of zeros.

    As soon as sums[height, 16 * some], flat, are those of `some` vectors of columns, it calls
    `then(more, vector, some)`, `vector` being the first of them: a CPU begins with the next tiles
    while it still computes what is not too much. There are MOST_SUMS elements at most.
    """
    width = TILE * vectors
    last = max(0, words - TILE)  # where the last tile of a row begins

    def groups(height: int) -> list[range]:
        """The vectors whose sums are in registers at the same time."""
        count = -(-vectors * height // (_SUMS * TILE))
        bounds = [vectors * g // count for g in range(count + 1)]
        return [range(*ends) for ends in pairwise(bounds)]

    @inlined
    def step(data, first, weights, panel, height, group, kk):
        for i in T.unroll(height // TILE):
            at = T.meta_var(T.address_of(data[first + TILE * i, T.min(TILE * kk, last)]))
            stride = T.meta_var(T.int64(WORD * data.shape[1]))
            amx("tileloadd64", tile_number(DATA + i), at, stride)
        for j in T.unroll(len(group)):
            at = T.meta_var(T.address_of(weights[panel, TILE * kk, TILE * (group.start + j)]))
            amx("tileloadd64", tile_number(WEIGHTS + j % 2), at, T.int64(WORD * width))
            for i in T.unroll(height // TILE):
                tiles = T.meta_var((i * len(group) + j, DATA + i, WEIGHTS + j % 2))
                amx(instruction, *map(tile_number, tiles))

    @inlined
    def of_group(data, first, weights, panel, sums, height, more, which):
        if which < len(groups(height)):
            group = T.meta_var(groups(height)[which])
            for tile in T.unroll(height // TILE * len(group)):
                amx("tilezero", tile_number(tile))
            for kk in range(-(-words // TILE)):
                step(data, first, weights, panel, height, group, kk)
            for i in T.unroll(height // TILE):
                for j in T.unroll(len(group)):
                    apart = T.meta_var(TILE * len(group))
                    at = T.meta_var(T.address_of(sums[TILE * (apart * i + j)]))
                    amx("tilestored64", tile_number(i * len(group) + j), at, T.int64(WORD * apart))
            then(more, group.start, len(group))

    @inlined
    def multiply(data, first, weights, panel, sums, height, more):
        of_group(data, first, weights, panel, sums, height, more, 0)
        of_group(data, first, weights, panel, sums, height, more, 1)
        of_group(data, first, weights, panel, sums, height, more, 2)

    return multiply


def visiting(panels: int, block: Emitted) -> Emitted:
    """For use in a kernel: `visit(tensors, rows, before)` calls `block` for all rows of all panels.

    Args:
        block: called with the tensors, the first row, the panel, a height (32 or 16), and which of
            these rows are wanted: from which on, and up to which. Rows that are there are others
            that it is called for, or `before` the first one. Of fewer than 16 in all it is the
            first ones that are.
    """

    @inlined
    def visit(tensors, rows, before=0):
        for panel in range(panels):
            for i in range(rows // (2 * TILE)):
                block(tensors, 2 * TILE * i, panel, 2 * TILE, 0, 2 * TILE)
            for i in range((rows % (2 * TILE) + TILE - 1) // TILE):
                begin = T.meta_var(rows - rows % (2 * TILE) + TILE * i)
                first = T.meta_var(T.max(-before, T.min(begin, rows - TILE)))
                count = T.meta_var(T.min(T.int64(TILE), rows - first))
                block(tensors, first, panel, TILE, begin - first, count)

    return visit
