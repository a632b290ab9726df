"""Room for the values between kernels: one block of memory, its parts used again and again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Range
from tvm.sym import Analyzer

from graphopt.targets.relax.primfunc import int64

LINE = 64  # bytes: a cache line, and the widest vector
_MAX_SIZE = 1 << 40


@dataclass(eq=False)
class Slot:
    """A part of the workspace: room for `size` bytes (an expression) at a multiple of 64.

    Attributes:
        level: how many times sizes must have been read until `size` is known.
    """

    size: Any
    level: int = 0


def analyzer_of(sizes: Iterable[tirx.Var]) -> Analyzer:
    """What knows that `sizes` are those of arrays."""
    analyzer = Analyzer()
    for size in sizes:
        analyzer.bind(size, Range(int64(0), int64(_MAX_SIZE)))
    return analyzer


def not_below_0(size: Any, analyzer: Analyzer) -> Any:
    """`size`, or 0 where inputs do not fit together and no kernel has said so yet."""
    size = int64(size)
    return size if analyzer.can_prove(size >= int64(0)) else tirx.max(size, int64(0))


class Workspace:
    """Assigns slots to values whose sizes are expressions over the sizes of the inputs.

    Those of some depend on sizes that kernels find. Where a slot lies is known as soon as its size
    is, so one is never enlarged by sizes that are found later.

    A value takes the smallest free slot that is large enough whatever those are; else it enlarges
    the slot freed last, which is likely to be in cache; else it gets a new one.
    """

    def __init__(self, sizes: Iterable[tirx.Var], found: Sequence[Sequence[tirx.Var]] = ()) -> None:
        self._slots: list[Slot] = []
        self._free: list[Slot] = []
        self._levels = {size: k + 1 for k, some in enumerate(found) for size in some}
        self._analyzer = analyzer_of((*sizes, *self._levels))

    def take(self, size: Any) -> Slot:
        """A slot of at least `size` bytes that nobody else uses until it is given back."""
        size = self._analyzer.simplify((int64(size) + (LINE - 1)) // LINE * LINE)
        size = not_below_0(size, self._analyzer)
        level = self._level(size)
        slot = self._smallest(size) or self._last(level)
        if slot is None:
            self._slots.append(Slot(size, level))
            return self._slots[-1]
        self._free.remove(slot)
        if not self._at_least(slot.size, size):
            larger = self._at_least(size, slot.size)
            slot.size = size if larger else tirx.max(slot.size, size)
        return slot

    def give_back(self, slot: Slot) -> None:
        """Let others have the slot."""
        self._free.append(slot)

    def layout(self) -> tuple[dict[Slot, Any], list[Any]]:
        """The offset of each slot in bytes, and where all slots up to each level end."""
        offsets: dict[Slot, Any] = {}
        end: Any = int64(0)
        ends: list[Any] = []
        for level in range(max(self._levels.values(), default=0) + 1):
            for slot in self._slots:
                if slot.level == level:
                    offsets[slot] = end
                    end = self._analyzer.simplify(end + slot.size)
            ends.append(end)
        return offsets, ends

    def _level(self, size: Any) -> int:
        used = tirx.analysis.undefined_vars(size)
        return max((self._levels.get(var, 0) for var in used), default=0)

    def _last(self, level: int) -> Slot | None:
        return next((slot for slot in reversed(self._free) if slot.level >= level), None)

    def _smallest(self, size: Any) -> Slot | None:
        best: Slot | None = None
        for slot in reversed(self._free):
            if not self._at_least(slot.size, size):
                continue
            if best is None or not self._at_least(slot.size, best.size):
                best = slot
        return best

    def _at_least(self, a: Any, b: Any) -> bool:
        return bool(self._analyzer.can_prove(a >= b))
