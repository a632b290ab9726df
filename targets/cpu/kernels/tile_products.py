"""Products of blocks of 16 and 32 rows with AMX.

Eight tile registers: 0 to 3 hold the sums of 2 x 2 tiles, 4 and 5 the data, 6 and 7 the weights, as
Intel's optimization manual has it: each tile that is loaded is multiplied twice.
"""

from typing import Any

from tvm.script import tirx as T

from graphopt.targets.cpu.kernels.bfloat16 import TILE, Words
from graphopt.targets.cpu.kernels.panels import Emitted
from graphopt.targets.kernels.script import inlined

_DATA, _WEIGHTS = 4, 6  # the first tile of each
_ROW_BYTES = 64


def _number(tile: Any) -> Any:
    return T.Cast("int8", tile)


def configuring(words: Words) -> tuple[Emitted, Emitted]:
    """For use in a kernel of enough rows: `configure(rows)` before tiles, `release(rows)` after.

    All tiles have 16 rows of 64 bytes.
    """

    @inlined
    def configure(rows):
        if rows >= TILE:
            config = T.alloc_buffer((64,), "uint8", scope="local")
            for i in range(64):
                config[i] = T.uint8(0)
            config[0] = T.uint8(1)  # the palette
            for tile in range(8):
                config[16 + 2 * tile] = T.uint8(_ROW_BYTES)
                config[48 + tile] = T.uint8(TILE)
            T.evaluate(words.tile("ldtilecfg", T.address_of(config[0])))

    @inlined
    def release(rows):
        if rows >= TILE:
            T.evaluate(words.tile("tilerelease"))

    return configure, release


def by_tiles(words: Words, depth: int, vectors: int) -> Emitted:
    """For use in a kernel: `multiply(data, first, weights, panel, sums, height)`.

    Writes sums[height, 16 * vectors], flat: the products of `height` (16 or 32) rows of
    data[rows, depth] from `first` on with weights[panel, depth, 16 * vectors].
    """
    width = TILE * vectors

    @inlined
    def step(data, first, weights, panel, pair, kk, height):
        for i in T.unroll(height // TILE):
            at = T.meta_var(T.address_of(data[first + TILE * i, TILE * kk]))
            T.evaluate(words.tile("tileloadd64", _number(_DATA + i), at, T.int64(4 * depth)))
        for j in T.unroll(2):
            if 2 * pair + j < vectors:
                at = T.meta_var(T.address_of(weights[panel, TILE * kk, TILE * (2 * pair + j)]))
                T.evaluate(words.tile("tileloadd64", _number(_WEIGHTS + j), at, T.int64(4 * width)))
        for i in T.unroll(height // TILE):
            for j in T.unroll(2):
                if 2 * pair + j < vectors:
                    tiles = T.meta_var([_number(n) for n in (2 * i + j, _DATA + i, _WEIGHTS + j)])
                    T.evaluate(words.tile("tdpbf16ps", *tiles))

    @inlined
    def multiply(data, first, weights, panel, sums, height):
        for pair in T.unroll(-(-vectors // 2)):
            for tile in T.unroll(4):
                T.evaluate(words.tile("tilezero", _number(tile)))
            for kk in range(depth // TILE):
                step(data, first, weights, panel, pair, kk, height)
            for i in T.unroll(height // TILE):
                for j in T.unroll(2):
                    if 2 * pair + j < vectors:
                        at = T.meta_var(T.address_of(sums[TILE * (width * i + 2 * pair + j)]))
                        number = T.meta_var(_number(2 * i + j))
                        T.evaluate(words.tile("tilestored64", number, at, T.int64(4 * width)))

    return multiply
