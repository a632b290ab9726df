"""Normalization and softmax of rows: a few neighbouring threads, up to a warp, share a row.

A row of up to `HELD` elements a thread is read once, 16 bytes at a time where its width allows, and
stays in registers. Longer ones, and those of a length known at run time only, are read again for
each step, then mostly from the nearest cache.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd, inf
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.targets.cuda.kernels import warps
from graphopt.targets.cuda.kernels.blocks import covering, launched
from graphopt.targets.kernels.elementary import fast_exp
from graphopt.targets.relax.primfunc import int64

THREADS = 256
HELD = 32
LANES = 4

Element = Callable[[Any, Any, Any], None]
"""What is done with an element: its value, its column, and whether the row has it."""


class _Row:
    """The row of this thread and its neighbours; to be made within the kernel.

    Attributes:
        group: threads that share a row.
    """

    def __init__(self, x: Any, out: Any, absent: float, aligned: bool) -> None:
        self._x, self._out = x, out
        width = x.shape[1]
        fixed = int(width) if isinstance(width, int | tirx.IntImm) else None
        self._width = width if fixed is None else fixed
        self._lanes = gcd(LANES, fixed) if aligned and fixed is not None else 1
        pieces: Any = int64(width) if fixed is None else fixed // self._lanes
        self.group = warps.WARP if fixed is None else min(warps.WARP, _power_of_two(pieces))
        self._passes: Any = covering(pieces, self.group)
        self._held = fixed is not None and self._passes * self._lanes <= HELD
        self._even = fixed is not None and pieces % self.group == 0
        self._absent = absent
        self._values: Any = None
        self._at: Any = None
        self._lane: Any = None
        self._mask: Any = None

    @property
    def each(self) -> int:
        """Rows of a block."""
        return THREADS // self.group

    def begin(self, at: Any, thread: Any) -> None:
        """Take row `at` for this thread and its neighbours, and read what they keep of it."""
        self._at, self._lane = at, thread % self.group
        self._mask = warps.neighbours(thread, self.group)
        count = self._passes if self._held else 1
        self._values = T.alloc_buffer([count * self._lanes], "float32", scope="local")
        if self._held:
            for k in range(self._passes):
                self._read(k, k)

    def elements(self, body: Element) -> None:
        """`body` for each element of this thread, and for the places where the row has no more."""

        def go(k: Any, slot: int) -> None:
            column, inside = self._place(k)
            for j in range(self._lanes):
                body(self._values[slot * self._lanes + j], column + j, inside)

        self._pieces(go)

    def store(self, result: Callable[[Any, Any], Any]) -> None:
        """Write `result(value, column)` of each element."""

        def go(k: Any, slot: int) -> None:
            column, inside = self._place(k)
            with T.If(inside), T.Then(), T.vectorized(self._lanes) as j:
                value = result(self._values[slot * self._lanes + j], column + j)
                T.buffer_store(self._out, value, [self._at, column + j])

        self._pieces(go)

    def combined(self, buffer: Any, at: int, combine: Callable[[Any, Any], Any]) -> None:
        """buffer[at] = what the threads of the row have there, combined."""
        warps.combined(buffer, at, combine, self.group, self._mask)

    def _pieces(self, body: Callable[[Any, int], None]) -> None:
        if self._held:
            for k in range(self._passes):
                body(k, k)
            return
        with T.serial(int64(0), int64(self._passes)) as k:
            self._read(k, 0)
            body(k, 0)

    def _place(self, k: Any) -> tuple[Any, Any]:
        piece = self._lane + k * self.group
        inside = tirx.const(True, "bool") if self._even else piece * self._lanes < self._width
        return piece * self._lanes, inside

    def _read(self, k: Any, slot: int) -> None:
        column, inside = self._place(k)

        def put(value: Callable[[Any], Any]) -> None:
            with T.vectorized(self._lanes) as j:
                T.buffer_store(self._values, value(j), [slot * self._lanes + j])

        if self._even:
            put(lambda j: self._x[self._at, column + j])
            return
        with T.If(inside):
            with T.Then():
                put(lambda j: self._x[self._at, column + j])
            with T.Else():
                put(lambda j: T.float32(self._absent))


def _power_of_two(count: int) -> int:
    """The smallest one that is not below `count`."""
    return 1 << (count - 1).bit_length()


def _by_rows(x: Any, out: Any, absent: float, aligned: bool, body: Callable[[_Row], None]) -> None:
    row, rows = _Row(x, out, absent, aligned), int64(x.shape[0])
    with launched(covering(rows, row.each), THREADS) as (block, thread):
        at = T.bind(block * row.each + thread // row.group)
        with T.If(at < rows), T.Then():
            row.begin(at, thread)
            body(row)


def _sum(row: _Row, sums: Any, at: int, term: Callable[[Any], Any]) -> Any:
    """The sum of a term of each element of the row."""
    T.buffer_store(sums, T.float32(0), [at])

    def add(value: Any, column: Any, inside: Any) -> None:
        T.buffer_store(sums, sums[at] + T.Select(inside, term(value), T.float32(0)), [at])

    row.elements(add)
    row.combined(sums, at, lambda a, b: a + b)
    return sums[at]


def layer_norm(
    x: Any, scale: Any, shift: Any, out: Any, epsilon: float, *, centred: bool, aligned: bool
) -> None:
    """The statements of the kernel (x[rows, n], scale[n], shift[n]) -> out[rows, n].

    out = (x - mean) / sqrt(variance + epsilon) * scale + shift, moments over each row, float32. NaN
    spreads over its row.

    Args:
        centred: False takes every mean for 0, which is root mean square normalization.
        aligned: False if x may begin anywhere, so that it is read element by element.
    """
    width = T.float32(int(x.shape[1]))

    def body(row: _Row) -> None:
        sums = T.alloc_buffer([2], "float32", scope="local")
        mean: Any = T.float32(0)
        if centred:
            mean = T.bind(_sum(row, sums, 0, lambda value: value) / width)
        variance = _sum(row, sums, 1, lambda value: (value - mean) * (value - mean)) / width
        inverse = T.bind(T.float32(1) / T.sqrt(variance + T.float32(epsilon)))
        row.store(lambda value, c: (value - mean) * inverse * scale[c] + shift[c])

    _by_rows(x, out, 0.0, aligned, body)


def softmax(x: Any, out: Any, *, logarithm: bool, aligned: bool) -> None:
    """The statements of the kernel x[rows, n] -> out[rows, n], n known or not.

    e^x over its sum along the row, or the logarithm of that. NaN spreads over its row; a row of
    -inf alone becomes NaN.
    """

    def body(row: _Row) -> None:
        state = T.alloc_buffer([2], "float32", scope="local")
        T.buffer_store(state, T.float32(-inf), [0])
        row.elements(lambda v, c, inside: T.buffer_store(state, tirx.max(state[0], v), [0]))
        row.combined(state, 0, tirx.max)
        greatest = T.bind(state[0])
        total = T.bind(_sum(row, state, 1, lambda value: fast_exp(value - greatest)))
        if logarithm:
            weight = T.bind(T.log(total))
            row.store(lambda value, c: value - greatest - weight)
        else:
            row.store(lambda value, c: fast_exp(value - greatest) / total)

    _by_rows(x, out, -inf, aligned, body)
