"""Columns split into vectors and tiles of vectors."""

from dataclasses import dataclass
from math import ceil

from tvm.script import tirx as T


@dataclass(frozen=True)
class Tiles:
    """`columns` split into tiles of at most `registers` vectors of at most `max_lanes` elements.

    Vectors at the end overlap their neighbours instead of being shorter, because LLVM takes vectors
    of odd length apart element by element.  The columns they share are computed more than once, so
    what is computed must not depend on what is stored.
    """

    columns: int
    max_lanes: int
    registers: int

    @property
    def lanes(self) -> int:
        return min(self.max_lanes, 1 << (self.columns.bit_length() - 1))

    @property
    def count(self) -> int:
        return ceil(self.columns / (self.lanes * self.registers))

    @property
    def vectors(self) -> int:
        """Vectors in each tile: the same number in all."""
        return ceil(self.columns / (self.lanes * self.count))

    def column(self, tile, v):
        """First column of vector `v` of `tile`."""
        return T.min((tile * self.vectors + v) * self.lanes, self.columns - self.lanes)
