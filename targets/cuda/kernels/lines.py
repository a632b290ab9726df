"""Running sums and ranks along one axis: what goes on along different lines is parallel.

A line is all elements whose positions differ along that axis alone.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.targets.cpu.kernels.ordering import precedes
from graphopt.targets.cuda.kernels.blocks import covering, each, launched, scan, wait
from graphopt.targets.relax import scalar
from graphopt.targets.relax.primfunc import int64

THREADS = 256


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

    each(outer * inner, line)


def long_running_sums(x: Any, out: Any, *, exclusive: bool, reverse: bool) -> None:
    """The same by a block for each line, which adds up `THREADS` elements at a time."""
    outer, length, inner = (int64(size) for size in x.shape)
    dtype = str(x.dtype)
    work = scalar.working_dtype(dtype)
    zero = tirx.const(0, work)

    with launched(outer * inner, THREADS) as (at, thread):
        before = T.alloc_buffer([1], work, scope="local")
        T.buffer_store(before, zero, [0])
        with T.serial(int64(0), covering(length, THREADS)) as turn:
            step = T.bind(turn * THREADS + thread)
            k = length - 1 - step if reverse else step
            index, there = [at // inner, k, at % inner], step < length
            value = T.if_then_else(there, x[tuple(index)].astype(work), zero)
            sums = scan(value, thread, THREADS, work)
            own = sums[thread]
            if exclusive:
                own = T.Select(thread > 0, sums[tirx.max(thread - 1, int64(0))], zero)
            with T.If(there), T.Then():
                T.buffer_store(out, scalar.cast(before[0] + own, dtype), index)
            T.buffer_store(before, before[0] + sums[THREADS - 1], [0])
            wait()


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

    each(outer * inner * length, element)
