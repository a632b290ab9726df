"""Vectors along the other axis: sums over their lanes, of one or of many, and transposition."""

from collections.abc import Callable
from operator import add
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from graphopt.targets.cpu.kernels.panels import Emitted
from graphopt.targets.kernels.script import inlined


def reducing(width: int, combined: Callable[[Any, Any], Any] = add) -> Emitted:
    """For use in a kernel: `reduce(acc, at)` makes all of acc[at:at + width] their sum.

    Halves are added to one another, so that the order depends on `width` alone, a power of two, 16
    at most. All lanes are added up, as vectors stay in their registers so. Sums, or what else
    `combined` makes of two.
    """

    def both_halves(acc: Any, at: Any, half: int) -> Any:
        vector = acc[T.ramp(at, 1, width)]
        return combined(vector, tirx.Shuffle([vector], [lane ^ half for lane in range(width)]))

    @inlined
    def halve(acc, at, half):
        if 0 < half < width:
            acc[T.ramp(at, 1, width)] = both_halves(acc, at, half)

    @inlined
    def reduce(acc, at):
        halve(acc, at, 8)
        halve(acc, at, 4)
        halve(acc, at, 2)
        halve(acc, at, 1)

    return reduce


def folding(width: int) -> Emitted:
    """For use in a kernel: `fold(acc)` makes acc[:width] the sums of the lanes of `width` vectors.

    Adding up the lanes of each vector alone would cost more than most products that led to them.
    Instead the vectors acc[width, width], flat, are added to one another while they are transposed,
    log2(width) times, until one vector holds all the sums. `width` is a power of two, 16 at most.
    """

    def both_halves(acc: Any, at: int, step: int) -> Any:
        """Vector `at` in the lanes without bit `step` plus vector `at + step` in those with it."""
        vectors = [acc[T.ramp((at + k) * width, 1, width)] for k in (0, step)]
        own = [lane + (width - step if lane & step else 0) for lane in range(width)]
        other = [lane + step for lane in own]
        return tirx.Shuffle(vectors, own) + tirx.Shuffle(vectors, other)

    @inlined
    def halve(acc, step):
        if step < width:
            for at in T.unroll(width // (2 * step)):
                acc[T.ramp(at * 2 * step * width, 1, width)] = both_halves(acc, at * 2 * step, step)

    @inlined
    def fold(acc):
        halve(acc, 1)
        halve(acc, 2)
        halve(acc, 4)
        halve(acc, 8)

    return fold


def transposing(width: int, dtype: str = "float32") -> Emitted:
    """For use in a kernel: `transpose(acc)` turns the matrix acc[width, width], flat, of `dtype`.

    `width` is a power of two, 16 at most. Vectors `step` apart swap the lanes that are on the wrong
    side, log2(width) times: a quarter of the moves that one element after the other takes.
    """

    def swapped(acc: Any, at: int, step: int, upper: bool) -> Any:
        vectors = [acc[T.ramp((at + k) * width, 1, width)] for k in (0, step)]
        lanes = [lane + (width - step if lane & step else 0) for lane in range(width)]
        return tirx.Shuffle(vectors, [lane + step if upper else lane for lane in lanes])

    @inlined
    def swap(acc, step):
        if step < width:
            for pair in T.unroll(width // 2):
                at = T.meta_var(pair // step * 2 * step + pair % step)
                upper = T.alloc_buffer((width,), dtype)
                upper[T.ramp(0, 1, width)] = swapped(acc, at, step, True)
                acc[T.ramp(at * width, 1, width)] = swapped(acc, at, step, False)
                acc[T.ramp((at + step) * width, 1, width)] = upper[T.ramp(0, 1, width)]

    @inlined
    def transpose(acc):
        swap(acc, 1)
        swap(acc, 2)
        swap(acc, 4)
        swap(acc, 8)

    return transpose
