"""Products of the features of one sample, by tiles of AMX.

The features are rounded to bfloat16 as rows of words, and turned around 16 by 16 words at a time,
which is how tiles want the second factor. All products of 16 features with 16 are computed where
some are wanted; which ones these are, a list of places says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.targets.cpu.kernels.amx import DATA, SUMS, TILE, WEIGHTS, WORD, Amx, tile_number
from graphopt.targets.cpu.kernels.bfloat16 import PAIR, Words
from graphopt.targets.relax.scalar import const

_FLOATS = PAIR * TILE  # that a row of a tile holds
_AT_ONCE = DATA - SUMS


def suits(count: int, dim: int, pairs: int) -> bool:
    """True if it is faster than vectors, for pairs of so many features of so many elements."""
    return min(count, pairs) >= TILE and dim % _FLOATS == 0


@dataclass(frozen=True)
class Products:
    """Which products of features are wanted, as tiles of sums.

    Attributes:
        count: features of a sample.
        dim: elements of a feature, a multiple of those in a row of a tile.
        tiles: the tiles of features on the left and on the right of each tile of sums.
        places: where each product is in the tiles of sums: int32[pairs].
        words: how they are multiplied.
    """

    count: int
    dim: int
    tiles: tuple[tuple[int, int], ...]
    places: np.ndarray
    words: Words

    @staticmethod
    def of(count: int, dim: int, left: np.ndarray, right: np.ndarray, words: Words) -> Products:
        """The products of the features left[p] and right[p]; the later one is multiplied first."""
        high, low = np.maximum(left, right), np.minimum(left, right)
        found, which = np.unique(np.stack([high, low], 1) // TILE, axis=0, return_inverse=True)
        places = (which.reshape(-1) * TILE + high % TILE) * TILE + low % TILE
        tiles = tuple((int(row), int(column)) for row, column in found)
        return Products(count, dim, tiles, places.astype(np.int32), words)

    @property
    def rows(self) -> int:
        """Features, up to a whole number of tiles."""
        return -(-self.count // TILE) * TILE

    @property
    def depth(self) -> int:
        """Words of a feature."""
        return self.dim // PAIR

    @property
    def amx(self) -> Amx:
        assert self.words.tiles is not None
        return self.words.tiles


class FeatureTiles:
    """Statements of a kernel that multiplies the features of one sample after the other."""

    def __init__(self, products: Products) -> None:
        """Set the tiles up; a kernel does so once."""
        self.products = products
        p = products
        self.rows = T.alloc_buffer((p.rows * p.depth,), "int32")
        self.turned = T.alloc_buffer((p.depth * p.rows,), "int32")
        self.sums = T.alloc_buffer((len(p.tiles) * TILE * TILE,), "float32")
        with T.serial((p.rows - p.count) * p.depth) as k:
            T.buffer_store(self.rows, const(0, "int32"), [p.count * p.depth + k])
        config = T.alloc_buffer((64,), "uint8")
        for k in range(64):
            tile, byte = divmod(k - 16, 2)
            value = TILE if k >= 48 and k - 48 < 8 else 0
            if 16 <= k < 32:
                value = WORD * TILE if byte == 0 and tile < 8 else 0
            T.buffer_store(config, const(1 if k == 0 else value, "uint8"), [k])
        p.amx("ldtilecfg", T.address_of(config[0]))

    def end(self) -> None:
        """Release the tiles."""
        self.products.amx("tilerelease")

    def multiply(self, features: Any) -> None:
        """Fill the sums with products of features[1, count * dim]."""
        self._round(features)
        self._turn()
        for first in range(0, len(self.products.tiles), _AT_ONCE):
            self._multiply(self.products.tiles[first : first + _AT_ONCE], first)

    def _round(self, features: Any) -> None:
        p, half = self.products, TILE // PAIR
        with T.serial(p.count * p.dim // TILE) as part:
            floats = features[0, tirx.Ramp(part * TILE, 1, TILE)]
            T.buffer_store(self.rows, p.words.rounded(floats), [tirx.Ramp(part * half, 1, half)])

    def _turn(self) -> None:
        p = self.products
        for tile in range(p.rows // TILE):
            with T.serial(p.depth // TILE) as part:
                at = tile * TILE * p.depth + part * TILE
                rows = [self.rows[tirx.Ramp(at + r * p.depth, 1, TILE)] for r in range(TILE)]
                for r, vector in enumerate(_transposed(rows)):
                    place = (part * TILE + r) * p.rows + tile * TILE
                    T.buffer_store(self.turned, vector, [tirx.Ramp(place, 1, TILE)])

    def _multiply(self, tiles: Sequence[tuple[int, int]], first: int) -> None:
        p = self.products
        for k in range(len(tiles)):
            p.amx("tilezero", tile_number(SUMS + k))
        with T.serial(p.depth // TILE) as part:
            loaded: dict[int, int] = {}
            for k, (row, column) in enumerate(tiles):
                data = DATA + row % 2
                if loaded.get(data) != row:
                    at = T.address_of(self.rows[row * TILE * p.depth + part * TILE])
                    p.amx("tileloadd64", tile_number(data), at, const(WORD * p.depth, "int64"))
                    loaded[data] = row
                weights = WEIGHTS + column % 2
                if loaded.get(weights) != column:
                    at = T.address_of(self.turned[part * TILE * p.rows + column * TILE])
                    p.amx("tileloadd64", tile_number(weights), at, const(WORD * p.rows, "int64"))
                    loaded[weights] = column
                p.amx("tdpbf16ps", *map(tile_number, (SUMS + k, data, weights)))
        for k in range(len(tiles)):
            at = T.address_of(self.sums[(first + k) * TILE * TILE])
            p.amx("tilestored64", tile_number(SUMS + k), at, const(WORD * TILE, "int64"))

    def wanted(self, places: Any, lanes: int) -> Iterator[tuple[int, Any]]:
        """Vectors of the products that are wanted, and their first ones; the last two overlap."""
        count = len(self.products.places)
        for vector in range(-(-count // lanes)):
            first = min(vector * lanes, count - lanes)
            yield first, self.sums[places[tirx.Ramp(first, 1, lanes)]]


def _transposed(rows: Sequence[Any]) -> list[Any]:
    """Vectors with the lanes of as many vectors; see `kernels.folding.transposing`."""
    vectors, width = list(rows), len(rows)
    step = 1
    while step < width:
        for at in range(width):
            if at & step == 0:
                two = vectors[at], vectors[at + step]
                lanes = [lane + (width - step if lane & step else 0) for lane in range(width)]
                vectors[at] = T.bind(tirx.Shuffle(two, lanes))
                upper = [lane + step for lane in lanes]
                vectors[at + step] = T.bind(tirx.Shuffle(two, upper))
        step *= 2
    return vectors
