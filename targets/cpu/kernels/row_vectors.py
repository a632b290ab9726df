"""Rows of any length as vectors, and the greatest element of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from graphopt.targets.cpu.kernels.folding import reducing
from graphopt.targets.cpu.kernels.panels import Emitted
from graphopt.targets.kernels.script import inlined

SIDE = 4  # vectors of maxima side by side: none waits for the one before it


@dataclass(frozen=True)
class RowVectors:
    """A row of `columns` elements, which may be symbolic, in vectors of `width`; it has one.

    What is left at its end is part of a last vector that begins within the one before it.
    """

    columns: Any
    width: int

    @staticmethod
    def width_for(dim: int | None, lanes: int) -> int:
        """The width for rows of `dim` elements; of unknown rows shorter ones take another."""
        return lanes if dim is None else min(lanes, 1 << (max(dim, 1).bit_length() - 1))

    @property
    def chunks(self) -> Any:
        return self.columns // self.width

    @property
    def rest(self) -> Any:
        return self.columns % self.width

    @property
    def ends(self) -> bool:
        """Whether something may be left."""
        return self.width > 1 and (not isinstance(self.rest, int) or self.rest > 0)

    @property
    def last(self) -> Any:
        """Where the last vector begins."""
        return self.columns - self.width


def greatest(
    vectors: RowVectors, combined: Callable[[Any, Any], Any], read: Callable[[Any, Any, Any], Any]
) -> Emitted:
    """For use in a kernel: `find(top, x, row)` makes top[0] the greatest `read(x, row, column)`.

    `top` has SIDE vectors. `combined` is the greater of two float32.
    """
    width, chunks = vectors.width, vectors.chunks
    side = 1 if isinstance(chunks, int) and chunks < 2 * SIDE else SIDE
    groups, join = chunks // side, reducing(width, combined)

    @inlined
    def find(top, x, row):
        for lane in T.vectorized(width * side):
            top[lane] = T.float32("-inf")
        for group in range(groups):
            for part in T.unroll(side):
                for lane in T.vectorized(width):
                    at = T.meta_var(part * width + lane)
                    top[at] = combined(top[at], read(x, row, group * (side * width) + at))
        for chunk in range(chunks - groups * side):
            for lane in T.vectorized(width):
                column = T.meta_var((groups * side + chunk) * width + lane)
                top[lane] = combined(top[lane], read(x, row, column))
        if vectors.ends:
            for lane in T.vectorized(width):
                top[lane] = combined(top[lane], read(x, row, vectors.last + lane))
        for part in T.unroll(side - 1):
            for lane in T.vectorized(width):
                top[lane] = combined(top[lane], top[(part + 1) * width + lane])
        join(top, 0)

    return find
