"""What the 32 threads of a warp do together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

WARP = 32
_ALL = tirx.const(0xFFFFFFFF, "uint32")


def neighbours(thread: Any, threads: int) -> Any:
    """The mask of the `threads` neighbours, a power of two, that a thread is one of."""
    if threads == WARP:
        return _ALL
    group = tirx.const((1 << threads) - 1, "uint32")
    return group << (thread % WARP // threads * threads).astype("uint32")


def exchanged(value: Any, distance: int, mask: Any = _ALL) -> Any:
    """The value of the thread whose number differs in one bit, `distance`."""
    return T.tvm_warp_shuffle_xor(mask, value, distance, WARP, WARP)


def broadcast(value: Any, lane: int) -> Any:
    """The value of one thread, for all."""
    return T.tvm_warp_shuffle(_ALL, value, lane, WARP, WARP)


def combined(
    buffer: Any, at: int, combine: Callable[[Any, Any], Any], threads: int = WARP, mask: Any = _ALL
) -> None:
    """buffer[at], a local variable of each of `threads` neighbours, = all of theirs combined."""
    distance = threads // 2
    while distance:
        T.buffer_store(buffer, combine(buffer[at], exchanged(buffer[at], distance, mask)), [at])
        distance //= 2


def added(buffer: Any, at: int, threads: int = WARP, mask: Any = _ALL) -> None:
    """buffer[at] = the sum of what `threads` neighbours have there."""
    combined(buffer, at, lambda a, b: a + b, threads, mask)
