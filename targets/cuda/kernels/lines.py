"""Running sums, scatters and ranks along one axis: what goes on along different lines is parallel.

A line is all elements whose positions differ along that axis alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.targets.cpu.kernels.ordering import precedes
from graphopt.targets.kernels import bounds
from graphopt.targets.relax import scalar
from graphopt.targets.relax.primfunc import int64

THREADS = 256


def _each(count: Any, body: Callable[[Any], None]) -> None:
    """`body(k)` on a thread of its own for each k below `count`."""
    with (
        T.thread_binding(
            int64(0), (count + (THREADS - 1)) // THREADS, thread="blockIdx.x"
        ) as block,
        T.thread_binding(int64(0), int64(THREADS), thread="threadIdx.x") as thread,
    ):
        at = T.bind(block * THREADS + thread)
        with T.If(at < count), T.Then():
            body(at)


def running_sums(x: Any, out: Any, *, exclusive: bool, reverse: bool) -> None:
    """The statements of the kernel (x[outer, n, inner]) -> out: sums along the middle axis."""
    outer, length, inner = (int64(size) for size in x.shape)
    dtype = str(x.dtype)
    work = scalar.working_dtype(dtype)

    def line(at: Any) -> None:
        total = T.alloc_buffer([1], work, scope="local")
        T.buffer_store(total, tirx.const(0, work), [0])
        with T.serial(int64(0), length) as step:
            k = length - 1 - step if reverse else step
            index = [at // inner, k, at % inner]
            value = T.bind(x[tuple(index)].astype(work))
            if exclusive:
                T.buffer_store(out, scalar.cast(total[0], dtype), index)
            T.buffer_store(total, total[0] + value, [0])
            if not exclusive:
                T.buffer_store(out, scalar.cast(total[0], dtype), index)

    _each(outer * inner, line)


def scatter(
    data: Any, ids: Any, updates: Any, out: Any, axis: int, oob: str, change: Callable[..., Any]
) -> None:
    """The statements of the kernel: out = data, then each update applied at its place on its line.

    Those of a line are applied in order. One that is out of range goes to the nearest place, or
    nowhere if `oob` is "zero". Of ids and updates that have other lines than the data, or more of
    them than of one another, nothing is read: to report them is the caller's.

    Args:
        change: what an element of a buffer becomes, of the buffer, its index and the update.
    """
    sizes = [int64(size) for size in data.shape]
    others = [size for k, size in enumerate(sizes) if k != axis]
    count: Any = int64(1)
    for size in others:
        count = count * size

    def line(at: Any) -> None:
        place = _position(at, others)

        def on(k: Any) -> list[Any]:
            return [*place[:axis], k, *place[axis:]]

        with T.serial(int64(0), sizes[axis]) as k:
            T.buffer_store(out, data[tuple(on(k))], on(k))
        given = tirx.min(int64(ids.shape[axis]), int64(updates.shape[axis]))
        count = tirx.Select(_within(place, axis, (ids, updates)), given, int64(0))
        with T.serial(int64(0), T.bind(count)) as k:
            index, size = T.bind(ids[tuple(on(k))].astype("int64")), sizes[axis]
            inside = T.bind(tirx.max(tirx.min(index, size - 1), -size))
            target = on(T.bind(tirx.Select(inside < 0, inside + size, inside)))

            def write(k: Any = k, target: list[Any] = target) -> None:
                T.buffer_store(out, change(out, target, updates[tuple(on(k))]), target)

            if oob == "zero":
                with T.If(bounds.is_valid(index, size)), T.Then():
                    write()
            else:
                write()

    _each(count, line)


def _within(place: Sequence[Any], axis: int, buffers: Sequence[Any]) -> Any:
    """True if a line of the data is one of some buffers too."""
    sizes = [[int64(n) for k, n in enumerate(b.shape) if k != axis] for b in buffers]
    conditions = [i < n for own in sizes for i, n in zip(place, own)]
    return tirx.all(tirx.const(True, "bool"), *conditions)


def _position(at: Any, sizes: Sequence[Any]) -> list[Any]:
    """The index of element `at` of `sizes`, in row-major order."""
    index: list[Any] = []
    for size in reversed(sizes):
        index.insert(0, at % size)
        at = at // size
    return index


def ranks(x: Any, order: Any, *, descending: bool) -> None:
    """The statements of the kernel (x[outer, n, inner]) -> order[outer, inner, n].

    The positions of the elements of each line, sorted by element; equal ones keep their order. Each
    thread counts how many come before an element of its own.
    """
    outer, length, inner = (int64(size) for size in x.shape)
    dtype = str(x.dtype)

    def element(at: Any) -> None:
        o, i, own = at // (inner * length), at // length % inner, T.bind(at % length)
        value = T.bind(x[o, own, i])
        before = T.alloc_buffer([1], "int64", scope="local")
        T.buffer_store(before, int64(0), [0])
        with T.serial(int64(0), length) as k:
            other = T.bind(x[o, k, i])
            earlier = tirx.all(k < own, tirx.Not(precedes(value, other, dtype, descending)))
            comes = tirx.any(precedes(other, value, dtype, descending), earlier)
            T.buffer_store(before, before[0] + tirx.Select(comes, int64(1), int64(0)), [0])
        T.buffer_store(order, own, [o, i, before[0]])

    _each(outer * inner * length, element)
