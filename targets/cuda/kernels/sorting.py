"""Stable sorting of lines by integer keys, and the best few of each line; a block a line.

What orders an element is a number, its key. Equal keys keep their order, so that results
depend on nothing but the line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.targets.cuda.kernels.blocks import covering, launched, scan, wait
from graphopt.targets.relax.primfunc import int64

THREADS = 512
_DIGITS = 16  # of 4 bits, one a pass
SELECTING = 256
_EACH = 4  # elements that a thread looks at between two barriers
MOST = 512
"""How many of a line `best` can keep."""


NONE = tirx.const(2**63 - 1, "int64")
"""What comes after all that `best` compares."""
Key = Callable[[Any, Any], Any]
"""Of a line and a position on it."""


def key_of(value: Any, dtype: str, descending: bool) -> Any:
    """The bits of an unsigned number in the order of `ordering.precedes`, as an int of its size."""
    if dtype in ("float16", "bfloat16"):
        value, dtype = tirx.Cast("float32", value), "float32"
    bits = key_bits(dtype)
    whole = f"int{bits}"
    top = tirx.const(-(1 << (bits - 1)), whole)
    if dtype.startswith("float"):
        raw = T.bind(tirx.reinterpret(whole, value))
        ordered = T.Select(raw < tirx.const(0, whole), tirx.bitwise_not(raw), raw ^ top)
        zero = tirx.EQ(value, tirx.const(0, dtype))  # of which there are two
        key = T.Select(tirx.isnan(value), tirx.const(-1, whole), T.Select(zero, top, ordered))
    elif dtype.startswith("int"):
        key = value ^ top
    else:
        key = tirx.reinterpret(whole, tirx.Cast("uint8", value) if dtype == "bool" else value)
    return tirx.bitwise_not(key) if descending else key


def with_position(key: Any, k: Any) -> Any:
    """A key of 32 bits and a position as one number, int64, in the order of both."""
    above = (key ^ tirx.const(-(1 << 31), "int32")).astype("int64")
    return above * int64(1 << 32) + k


def position_in(both: Any) -> Any:
    """The position in what `with_position` gave."""
    return both & int64((1 << 32) - 1)


def key_bits(dtype: str) -> int:
    """How many bits the keys of a dtype have."""
    widened = {"float16": "float32", "bfloat16": "float32", "bool": "uint8"}.get(dtype, dtype)
    return int(re.sub(r"\D", "", widened))


def rounds_below(size: Any) -> Any:
    """The rounds of `sort` for keys below a size, which is int64."""
    rounds: Any = int64(1)
    for bits in range(8, 56, 8):
        rounds = rounds + tirx.Select(size > int64(1 << bits), int64(1), int64(0))
    return rounds


def sort(key: Key, length: Callable[[Any], Any], rounds: Any, order: Any, spare: Any) -> None:
    """The statements of the kernel: order[line] = its positions, by key; a radix sort.

    Args:
        length: how many positions of a line there are.
        rounds: how many times 8 bits of the keys there are to look at.
        order: int64 [lines, n].
        spare: the same, scratch.
    """

    with launched(int64(order.shape[0]), THREADS) as (line, thread):
        counts = T.alloc_buffer([_DIGITS * THREADS], "int32", scope="shared")
        count = T.bind(int64(length(line)))
        share = T.bind(covering(count, THREADS))
        first = T.bind(tirx.min(thread * share, count))
        own = T.bind(tirx.min(share, count - first))
        with T.serial(int64(0), own) as k:
            T.buffer_store(order, first + k, [line, first + k])
        with T.serial(int64(0), int64(rounds)) as turn:
            for half, (source, target) in enumerate(((order, spare), (spare, order))):
                _pass(key, line, thread, counts, turn * 8 + half * 4, first, own, source, target)


def _pass(
    key: Key,
    line: Any,
    thread: Any,
    counts: Any,
    shift: Any,
    first: Any,
    own: Any,
    source: Any,
    target: Any,
) -> None:
    """Move the positions of a line from `source` to `target` by one digit of their keys.

    Each thread has a stretch of `own` positions from `first` on.
    """

    def digit(position: Any) -> Any:
        found = T.bind(key(line, position))
        last = tirx.const(_DIGITS - 1, found.ty.dtype)
        return T.bind(((found >> shift.astype(found.ty.dtype)) & last).astype("int64"))

    # Each thread counts in memory of its own.
    mine = T.alloc_buffer([_DIGITS], "int32", scope="local")
    for k in range(_DIGITS):
        T.buffer_store(mine, 0, [k])
    wait()  # for the positions
    with T.serial(int64(0), own) as k:
        at = digit(T.bind(source[line, first + k]))
        T.buffer_store(mine, mine[at] + 1, [at])
    for k in range(_DIGITS):
        T.buffer_store(counts, mine[k], [k * THREADS + thread])
    wait()
    # Digit by digit, and of one digit thread by thread: where the elements of each go.
    total = T.alloc_buffer([1], "int32", scope="local")
    T.buffer_store(total, 0, [0])
    for k in range(_DIGITS):
        T.buffer_store(mine, counts[thread * _DIGITS + k], [k])
        T.buffer_store(total, total[0] + mine[k], [0])
    sums = scan(total[0], thread, THREADS)
    T.buffer_store(total, sums[thread] - total[0], [0])
    for k in range(_DIGITS):
        T.buffer_store(counts, total[0], [thread * _DIGITS + k])
        T.buffer_store(total, total[0] + mine[k], [0])
    wait()
    for k in range(_DIGITS):
        T.buffer_store(mine, counts[k * THREADS + thread], [k])
    with T.serial(int64(0), own) as k:
        position = T.bind(source[line, first + k])
        at = digit(position)
        T.buffer_store(target, position, [line, mine[at].astype("int64")])
        T.buffer_store(mine, mine[at] + 1, [at])
    wait()


def best(element: Key, lines: Any, length: Any, out: Any) -> None:
    """The statements of the kernel: out[line] = the k least elements of each, int64, in order.

    A block keeps the best that it has met, and puts what is better than the last of them beside
    these, until there is no room for more; then both are sorted, and the best stay.

    Args:
        element: what to compare, int64; no two on a line are equal.
        out: int64 [lines, k], k at most `MOST`; where a line has fewer elements, the greatest
            number there is.
    """
    few = int(out.shape[1])
    step = SELECTING * _EACH
    room = 1 << (few + step - 1).bit_length()

    with launched(lines, SELECTING) as (line, thread):
        kept = T.alloc_buffer([room + SELECTING], "int64", scope="shared")
        more = T.alloc_buffer([1], "int32", scope="shared")  # beside the best ones
        own = T.alloc_buffer([_EACH], "int64", scope="local")

        def clear(begin: int) -> None:
            with T.serial(int64(0), int64(-(-(room - begin) // SELECTING))) as k:
                at = T.bind(k * SELECTING + thread + begin)
                with T.If(at < room), T.Then():
                    T.buffer_store(kept, NONE, [at])
            with T.If(thread == 0), T.Then():
                T.buffer_store(more, 0, [0])
            wait()

        def keep_best() -> None:
            wait()
            _sort_shared(kept, room, thread)
            clear(few)

        clear(0)
        with T.serial(int64(0), covering(int64(length), step)) as turn:
            for k in range(_EACH):
                at = turn * step + k * SELECTING + thread
                there = at < length
                value = T.if_then_else(there, element(line, tirx.min(at, length - 1)), NONE)
                T.buffer_store(own, value, [k])
            last = T.bind(kept[few - 1])
            # TVM allows no barrier under a condition, and is not sure that none is needed here: so
            # all is written, what is not wanted to a place of the thread's own.
            for k in range(_EACH):
                wanted = own[k] < last
                one = tirx.const(1, "int32")
                next_one = T.call_extern("int32", "atomicAdd", T.address_of(more[0]), one)
                slot = T.bind(T.if_then_else(wanted, next_one, 0).astype("int64"))
                T.buffer_store(kept, own[k], [T.Select(wanted, slot + few, room + thread)])
            wait()
            is_full = T.bind(more[0] + (few + step) > room)
            wait()  # `more` is read by all before it grows again
            with T.serial(int64(0), T.Select(is_full, int64(1), int64(0))):
                keep_best()
        keep_best()
        with T.serial(int64(0), int64(-(-few // SELECTING))) as k:
            at = T.bind(k * SELECTING + thread)
            with T.If(at < few), T.Then():
                T.buffer_store(out, kept[at], [line, at])


def _sort_shared(values: Any, count: int, thread: Any) -> None:
    """Sort `count` (a power of two) numbers in shared memory: a bitonic network.

    Each merge first compares what lies symmetrically around the middle of a stretch, so that all
    comparisons have one direction.
    """
    stages = count.bit_length() - 1
    with T.serial(int64(0), int64(stages)) as stage, T.serial(int64(0), stage + 1) as step:
        bit = T.bind(stage - step)
        with T.serial(int64(0), int64(max(1, count // 2 // SELECTING))) as k:
            pair = T.bind(k * SELECTING + thread)
            low = T.bind((pair >> bit << (bit + 1)) | (pair & ((int64(1) << bit) - 1)))
            half = int64(1) << bit
            mirrored = low ^ ((half << 1) - 1)
            high = T.bind(T.Select(step == 0, mirrored, low | half))
            a, b = T.bind(values[low]), T.bind(values[high])
            with T.If(b < a), T.Then():
                T.buffer_store(values, b, [low])
                T.buffer_store(values, a, [high])
        wait()
