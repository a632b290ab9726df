"""Blocks of threads: how they are launched, and what the threads of one do together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.targets.relax.primfunc import int64

_SIDE_BY_SIDE = 256  # threads of a block that have nothing to do with each other


def covering(items: Any, each: int) -> Any:
    """Blocks that serve `each` items."""
    return (items + (each - 1)) // each


@contextmanager
def launched(count: Any, threads: int) -> Iterator[tuple[Any, Any]]:
    """Within are the statements of a thread: which of `count` blocks it is in, and its number."""
    with (
        T.thread_binding(int64(0), count, thread="blockIdx.x") as block,
        T.thread_binding(int64(0), int64(threads), thread="threadIdx.x") as thread,
    ):
        yield block, thread


def each(count: Any, body: Callable[[Any], None]) -> None:
    """`body(k)` on a thread of its own for each k below `count`."""
    with launched(covering(count, _SIDE_BY_SIDE), _SIDE_BY_SIDE) as (block, thread):
        at = T.bind(block * _SIDE_BY_SIDE + thread)
        with T.If(at < count), T.Then():
            body(at)


def wait() -> None:
    """A barrier for the threads of a block."""
    T.evaluate(T.tvm_storage_sync("shared"))


def scan(own: Any, thread: Any, threads: int, dtype: str = "int32") -> Any:
    """What each thread of a block and those before it have, added up: [threads]."""
    sums = T.alloc_buffer([threads], dtype, scope="shared")
    T.buffer_store(sums, own, [thread])
    distance = 1
    while distance < threads:
        wait()
        earlier = sums[tirx.max(thread - distance, int64(0))]
        total = T.bind(sums[thread] + T.Select(thread >= distance, earlier, tirx.const(0, dtype)))
        wait()
        T.buffer_store(sums, total, [thread])
        distance *= 2
    wait()
    return sums
