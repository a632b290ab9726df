"""Room for the values between kernels: one block of memory, its parts used again and again."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Range
from tvm.sym import Analyzer
from tvm_ffi import StructuralKey

from graphopt.targets.relax.primfunc import int64

LINE = 64  # bytes: a cache line, and the widest vector
_MAX_SIZE = 1 << 40


@dataclass(frozen=True, eq=False)
class _Size:
    """A number of bytes, an expression, and the variables in it."""

    bytes: Any
    variables: frozenset[tirx.Var]


@dataclass(eq=False)
class Slot:
    """A part of the workspace: room for the largest of `sizes` at a multiple of 64.

    Attributes:
        sizes: none of them is known to be at least another.
        level: how many times sizes must have been read until these are known.
    """

    sizes: list[_Size]
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

    Args:
        found: the sizes that are read at each level but the first.
    """

    def __init__(self, sizes: Iterable[tirx.Var], found: Sequence[Sequence[tirx.Var]] = ()) -> None:
        self._slots: list[Slot] = []
        self._free: list[Slot] = []
        self._levels = {size: k + 1 for k, some in enumerate(found) for size in some}
        self._analyzer = analyzer_of((*sizes, *self._levels))
        self._sizes: dict[StructuralKey, _Size] = {}
        self._compared: dict[tuple[_Size, _Size], bool] = {}

    def take(self, bytes_: Any) -> Slot:
        """A slot of at least so many bytes that nobody else uses until it is given back."""
        size = self._size(bytes_)
        level = max((self._levels.get(var, 0) for var in size.variables), default=0)
        slot = self._smallest(size) or self._last(level)
        if slot is None:
            self._slots.append(Slot([size], level))
            return self._slots[-1]
        self._free.remove(slot)
        if not self._holds(slot, size):
            kept = [other for other in slot.sizes if not self._at_least(size, other)]
            slot.sizes = [*kept, size]
        return slot

    def give_back(self, slot: Slot) -> None:
        """Let others have the slot."""
        self._free.append(slot)

    def layout(self) -> tuple[dict[Slot, Any], list[tirx.Bind]]:
        """The offset of each slot in bytes, and where all slots up to each level end.

        The slots of a level begin at the variable of the end before: written out, the offsets of
        many levels would be as long as the square of these.
        """
        offsets: dict[Slot, Any] = {}
        ends: list[tirx.Bind] = []
        for level in range(max(self._levels.values(), default=0) + 1):
            end: Any = ends[-1].var if ends else int64(0)
            for slot in self._slots:
                if slot.level == level:
                    offsets[slot] = end
                    largest = functools.reduce(
                        tirx.max, [_lines(size.bytes) for size in slot.sizes]
                    )
                    end = self._analyzer.simplify(end + largest)
            ends.append(tirx.Bind(tirx.Var(f"end{level}", "int64"), end))
        return offsets, ends

    def _last(self, level: int) -> Slot | None:
        return next((slot for slot in reversed(self._free) if slot.level >= level), None)

    def _smallest(self, size: _Size) -> Slot | None:
        best: Slot | None = None
        for slot in reversed(self._free):
            if not self._holds(slot, size):
                continue
            if best is None or not all(self._holds(slot, other) for other in best.sizes):
                best = slot
        return best

    def _holds(self, slot: Slot, size: _Size) -> bool:
        return any(self._at_least(own, size) for own in slot.sizes)

    def _at_least(self, a: _Size, b: _Size) -> bool:
        """Whether `a` is known to be at least `b`: not if that depends on more than `a` does."""
        if not b.variables <= a.variables:
            return False
        if (a, b) not in self._compared:
            self._compared[a, b] = bool(self._analyzer.can_prove(a.bytes >= b.bytes))
        return self._compared[a, b]

    def _size(self, bytes_: Any) -> _Size:
        """Equal expressions are one size, and so are numbers that take the same cache lines."""
        simple = not_below_0(self._analyzer.simplify(int64(bytes_)), self._analyzer)
        if isinstance(simple, tirx.IntImm):
            simple = int64(_lines(int(simple)))
        variables = frozenset(tirx.analysis.undefined_vars(simple))
        return self._sizes.setdefault(StructuralKey(simple), _Size(simple, variables))


def _lines(size: Any) -> Any:
    """A number of bytes as whole cache lines."""
    return (size + (LINE - 1)) // LINE * LINE
