"""Room for the values between kernels: one block of memory, its parts used again and again."""

from __future__ import annotations

from collections.abc import Iterable
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
    """A part of the workspace: room for `size` bytes (an expression) at a multiple of 64."""

    size: Any


class Workspace:
    """Assigns slots to values whose sizes are expressions over the sizes of the inputs.

    A value takes the smallest free slot that is large enough whatever those are; else it enlarges
    the slot freed last, which is likely to be in cache; else it gets a new one.
    """

    def __init__(self, sizes: Iterable[tirx.Var]) -> None:
        self._slots: list[Slot] = []
        self._free: list[Slot] = []
        self._analyzer = Analyzer()
        for size in sizes:
            self._analyzer.bind(size, Range(int64(0), int64(_MAX_SIZE)))

    def take(self, size: Any) -> Slot:
        """A slot of at least `size` bytes that nobody else uses until it is given back."""
        size = self._analyzer.simplify((int64(size) + (LINE - 1)) // LINE * LINE)
        if not self._free:
            self._slots.append(Slot(size))
            return self._slots[-1]
        slot = self._smallest(size) or self._free[-1]
        self._free.remove(slot)
        if not self._at_least(slot.size, size):
            larger = self._at_least(size, slot.size)
            slot.size = size if larger else tirx.max(slot.size, size)
        return slot

    def give_back(self, slot: Slot) -> None:
        """Let others have the slot."""
        self._free.append(slot)

    def layout(self) -> tuple[dict[Slot, Any], Any]:
        """The offset of each slot in bytes, and the size of the whole."""
        offsets: dict[Slot, Any] = {}
        end: Any = int64(0)
        for slot in self._slots:
            offsets[slot] = end
            end = self._analyzer.simplify(end + slot.size)
        return offsets, end

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
