"""Positions found in data: those of what is not zero, and what is written where.

One block looks for what is not zero, because the order of results depends on what precedes them;
what is then done at the positions is left to kernels of many blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.targets.cpu.kernels.ordering import is_nonzero
from graphopt.targets.cuda.kernels.blocks import covering, each, launched, scan
from graphopt.targets.relax.primfunc import int64

THREADS = 1024


def count_nonzero(x: Any, count: Any) -> None:
    """The statements of the kernel (x[n]) -> count, int64 [1]."""

    with launched(int64(1), THREADS) as (_, thread):
        sums = _scanned(x, thread)
        with T.If(thread == THREADS - 1), T.Then():
            T.buffer_store(count, sums[thread].astype("int64"), [0])


def find_nonzero(x: Any, places: Any) -> None:
    """The statements of the kernel (x[n]) -> places[count]: where the elements are, in order."""

    with launched(int64(1), THREADS) as (_, thread):
        sums = _scanned(x, thread)
        at = T.alloc_buffer([1], "int64", scope="local")
        before = T.Select(thread > 0, sums[tirx.max(thread - 1, int64(0))], tirx.const(0, "int32"))
        T.buffer_store(at, before.astype("int64"), [0])

        def keep(k: Any) -> None:
            T.buffer_store(places, k, [at[0]])
            T.buffer_store(at, at[0] + 1, [0])

        _each_nonzero(x, thread, keep)


def _each_nonzero(x: Any, thread: Any, body: Callable[[Any], None]) -> None:
    """`body(k)` for the elements in the stretch of this thread that are not zero."""
    length = int64(x.shape[0])
    share = covering(length, THREADS)
    first = tirx.min(thread * share, length)
    with T.serial(int64(0), tirx.min(share, length - first)) as k:
        at = T.bind(first + k)
        with T.If(is_nonzero(x[at], str(x.dtype))), T.Then():
            body(at)


def _scanned(x: Any, thread: Any) -> Any:
    """How many elements are not zero in the stretches of each thread and those before it."""
    mine = T.alloc_buffer([1], "int32", scope="local")
    T.buffer_store(mine, 0, [0])
    _each_nonzero(x, thread, lambda _: T.buffer_store(mine, mine[0] + 1, [0]))
    return scan(mine[0], thread, THREADS)


def number_groups(order: Any, starts: Any, which: Any) -> None:
    """The statements of the kernel: which[order[j]] = the number of starts up to j, less one."""

    def body(j: Any) -> None:
        T.buffer_store(which, bisected(starts, j) - 1, [order[j]])

    each(int64(order.shape[0]), body)


def find_each(ascending: Any, which: Any, values: Any, out: Any) -> None:
    """The statements of the kernel: out[i] = where values[which[i]] is among the ascending."""

    def body(i: Any) -> None:
        T.buffer_store(out, bisected(ascending, values[which[i]]) - 1, [i])

    each(int64(which.shape[0]), body)


def bisected(ascending: Any, value: Any) -> Any:
    """How many of some ascending numbers are at most `value`."""
    span = T.alloc_buffer([2], "int64", scope="local")
    T.buffer_store(span, int64(0), [0])
    T.buffer_store(span, int64(ascending.shape[0]), [1])
    with T.While(span[0] < span[1]):
        middle = T.bind((span[0] + span[1]) // 2)
        with T.If(ascending[middle] <= value):
            with T.Then():
                T.buffer_store(span, middle + 1, [0])
            with T.Else():
                T.buffer_store(span, middle, [1])
    return span[0]


def last_writers(count: Any, place_of: Callable[[Any], tuple[Any, Any]], writer: Any) -> None:
    """The statements of the kernel: writer[p], int32, = the last k < count that writes to p, or -1.

    Args:
        place_of: where k writes, in range, and whether it does.
    """

    def clear(place: Any) -> None:
        T.buffer_store(writer, -1, [place])

    def write(k: Any) -> None:
        place, writes = place_of(k)
        with T.If(writes), T.Then():
            target = T.address_of(writer[T.bind(place)])
            T.evaluate(T.call_extern("int32", "atomicMax", target, k.astype("int32")))

    each(
        int64(writer.shape[0]), clear
    )  # a launch of its own: all must be clear before one is written
    each(int64(count), write)
