"""Whether what a program demands of its data holds: some blocks for each, one launch for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.targets.cuda.kernels.lookup import choose
from graphopt.targets.relax.primfunc import int64

PARTS = 32  # blocks that share the elements of a demand
THREADS = 256
AHEAD = 8  # elements that a thread asks for before it looks at the first

Holds = Callable[[Any], Any]
"""A condition on element k, to be called with k in range."""


def check(demands: Sequence[tuple[Holds, Any]], broken: Any, *, keeps: bool = False) -> None:
    """The statements of the kernel: broken[d, p] = 1 if demand d fails for a k of part p, else 0.

    Args:
        demands: the condition and the count of each.
        broken: a buffer, int32 [demands, PARTS].
        keeps: leave what is 1 already, as a step of a loop has to.
    """
    with (
        T.thread_binding(int64(0), int64(len(demands)), thread="blockIdx.x") as which,
        T.thread_binding(int64(0), int64(PARTS), thread="blockIdx.y") as part,
        T.thread_binding(int64(0), int64(THREADS), thread="threadIdx.x") as thread,
    ):
        found = T.alloc_buffer([1], "int32", scope="shared")
        mine = T.alloc_buffer([1], "int32", scope="local")
        with T.If(thread == 0), T.Then():
            T.buffer_store(found, 0, [0])
        T.buffer_store(mine, 0, [0])
        T.evaluate(T.call_intrin("", "tirx.tvm_storage_sync", "shared"))
        choose(which, range(len(demands)), lambda d: _look(*demands[d], part, thread, mine))
        with T.If(mine[0] > 0), T.Then():
            T.evaluate(T.call_extern("int32", "atomicMax", T.address_of(found[0]), mine[0]))
        T.evaluate(T.call_intrin("", "tirx.tvm_storage_sync", "shared"))
        with T.If(thread == 0), T.Then():
            before = [broken[which, part]] if keeps else []
            T.buffer_store(broken, reduce(tirx.max, before, found[0]), [which, part])


def _look(holds: Holds, count: Any, part: Any, thread: Any, mine: Any) -> None:
    """mine[0] = 1 if one of the elements of this thread fails."""
    count = int64(count)
    threads = PARTS * THREADS
    stride = threads * AHEAD
    first = T.bind(part * THREADS + thread)
    with T.serial(int64(0), (count + (stride - 1)) // stride) as turn:
        fine = []
        for k in range(AHEAD):
            at = T.bind(tirx.min(turn * stride + k * threads + first, count - 1))
            fine.append(T.bind(holds(at).astype("int32")))
        total = fine[0]
        for one in fine[1:]:
            total = total + one
        # no `If`: TVM would study its condition, which takes half of a large model's build
        T.buffer_store(mine, tirx.max(mine[0], (total < AHEAD).astype("int32")), [0])
