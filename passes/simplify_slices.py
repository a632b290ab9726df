"""Slices, splits, concatenations and constant gathers with nothing superfluous."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.ir.slices import LONGEST
from graphopt.passes._counters import Number, element, greatest_of
from graphopt.passes._shapes import INT64_MAX, ints_of, reshaped, slice_bounds
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

x, indices = var("x"), var("indices")


@rule(op.Slice(x, ...))
def slice_to_constants(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch | None:
    """Slice(x) -> x, or Slice(x) with its bounds in one form: axes in order, no idle ones"""
    bounds = slice_bounds(node)
    if bounds is None or x.shape is None:
        return NoMatch("its bounds or steps are not constants, or a step is not 1")
    kept = {a: b for a, b in sorted(bounds.items()) if b not in ((0, x.shape[a]), (0, INT64_MAX))}
    if not kept:
        return x
    wanted = [[b[0] for b in kept.values()], [b[1] for b in kept.values()], list(kept)]
    written = [None if v is None or v.const is None else v.const for v in node.inputs[1:]]
    if [a is not None and a.dtype == np.int64 and a.tolist() for a in written] == wanted:
        return None
    return _slice(rw, x, kept)


def _slice(rw: Rewriter, x: Value, bounds: dict[int, tuple[int, int]]) -> Value:
    starts, ends = zip(*bounds.values())
    return rw.op.Slice(x, rw.ints(*starts), rw.ints(*ends), rw.ints(*bounds))


@rule(op.Slice(op.Slice(x, ...).named("inner").shared(), ...))
def slice_of_slice(rw: Rewriter, x: Value, inner: Value, node: Node) -> Value | NoMatch:
    """Slice(Slice(x)) -> Slice(x)"""
    assert inner.producer is not None
    first, second = slice_bounds(inner.producer), slice_bounds(node)
    if first is None or second is None:
        return NoMatch("the bounds of one are not constants")
    merged = dict(first)
    for axis, (start, end) in second.items():
        if axis not in first:
            merged[axis] = (start, end)
            continue
        begin, stop = first[axis]
        if begin < 0 or start < 0 or end < 0 or (stop < 0 and end != INT64_MAX):
            return NoMatch("both count from the end of an axis of unknown size")
        if end != INT64_MAX:
            stop = min(stop, begin + end)
        merged[axis] = (begin + start, stop)
    return _slice(rw, x, dict(sorted(merged.items())))


@rule(op.Gather(x, indices))
def gather_to_slice(rw: Rewriter, x: Value, indices: Value, node: Node) -> Value | NoMatch:
    """Gather(x, [2, 3, 4]) -> Slice(x, 2, 5)"""
    positions = ints_of(indices)
    if indices.const is None or positions is None or indices.rank != 1 or not positions:
        return NoMatch("the indices are not a constant vector")
    axis = node.attr("axis") % len(x.shape or (0,))
    size = x.shape[axis] if x.shape else None
    if not isinstance(size, int) or not all(-size <= k < size for k in positions):
        return NoMatch("an index may be out of range, which is an error for Gather alone")
    positions = [k % size for k in positions]
    if positions != list(range(positions[0], positions[0] + len(positions))):
        return NoMatch("the indices are not consecutive")
    return _slice(rw, x, {axis: (positions[0], positions[-1] + 1)})


@rule(op.GatherND(x, indices))
def gather_nd_to_gather(rw: Rewriter, x: Value, indices: Value, node: Node) -> Value | NoMatch:
    """GatherND(x, i[..., 1]) -> Gather(x, i[...]), as both take one position of the first axis"""
    dims = indices.shape
    if node.attr("batch_dims") or x.shape is None or not dims or dims[-1] != 1:
        return NoMatch("it takes positions of several axes, or of a sample's own")
    if indices.const is not None:
        return rw.op.Gather(x, rw.const(indices.const[..., 0]), axis=0)
    bare = reshaped(rw, indices, dims[:-1])
    return bare if isinstance(bare, NoMatch) else rw.op.Gather(x, bare, axis=0)


@rule(op.Reshape(op.Slice(x, ...).named("inner"), ...))
def sliced_column_to_gather(rw: Rewriter, x: Value, inner: Value, node: Node) -> Value | NoMatch:
    """Reshape(x[:, 3:4]) -> Gather(x, 3), if the reshape drops that axis"""
    assert inner.producer is not None and inner.shape is not None
    bounds = slice_bounds(inner.producer)
    if bounds is None or len(bounds) != 1:
        return NoMatch("it is not a slice of one axis with constant bounds")
    ((axis, (start, end)),) = bounds.items()
    if end - start != 1 or not isinstance(x.tensor.dims[axis], int):
        return NoMatch("it is not known to take one element")
    if node.output.shape != inner.shape[:axis] + inner.shape[axis + 1 :]:
        return NoMatch("the reshape does more than dropping the axis")
    return rw.op.Gather(x, rw.const(start, "int64"), axis=axis)


@rule(op.Squeeze(op.Slice(x, ...).named("inner"), ...))
def counted_column_to_gather(
    rw: Rewriter, x: Value, inner: Value, node: Node
) -> Value | NoMatch | None:
    """Squeeze(x[:, i:i+1]) -> Gather(x, i), if i counts the steps of a loop"""
    cut = inner.producer
    assert cut is not None and inner.shape is not None and x.shape is not None
    starts, ends = cut.inputs[1:3]
    if starts is None or ends is None or ints_of(starts) is not None:
        return None
    axes = ints_of(cut.input(3)) if cut.input(3) is not None else list(range(len(x.shape)))
    steps = ints_of(cut.input(4)) if cut.input(4) is not None else [1] * len(x.shape)
    if axes is None or steps is None or min(steps) < 1:
        return NoMatch("its axes or steps are not known, or it walks backwards")
    counted = []
    for k, axis in enumerate(axes):
        first = greatest_of(cut, starts, k)
        last = greatest_of(cut, ends, k)
        if first == [Number(0, False)] and steps[k] == 1:
            if not any(number.value >= LONGEST for number in last):
                return NoMatch("it takes a part of other axes")
            continue
        if len(first) != 1 or not first[0].counts or first[0].value < 0:
            return NoMatch("where it starts does not count the steps of a loop")
        if not any(n.value > first[0].value if n.counts else n.value >= LONGEST for n in last):
            return NoMatch("it may take nothing, which is an error")
        counted.append((axis % len(x.shape), element(starts, k)))
    if len(counted) != 1:
        return NoMatch("it counts along several axes")
    ((axis, index),) = counted
    dropped = ints_of(node.input(1))
    if dropped is None or [k % len(x.shape) for k in dropped] != [axis]:
        return NoMatch("it is not that axis that is dropped, which says that it has one element")
    assert index is not None
    return rw.op.Gather(x, index if index.rank == 0 else rw.op.Reshape(index, rw.ints()), axis=axis)


@rule(op.Split(x, ...))
def split_to_nothing(rw: Rewriter, x: Value, node: Node) -> list[Value] | NoMatch:
    """Split(x) into one part -> x"""
    return [x] if len(node.outputs) == 1 else NoMatch("it has several parts")


@rule(op.Pad(x, ...))
def pad_to_nothing(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch:
    """Pad(x) by zero elements -> x"""
    pads = ints_of(node.inputs[1])
    if pads is None or any(pads):
        return NoMatch("it pads, or may")
    return x


class SimplifySlices(RewritePass):
    """Merges slices, drops idle ones, and turns gathers of constant positions into them.

    Needs bounds and positions that are known. A Slice with constant bounds gets one form: axes in
    order, counted from the front where the size is known, without the axes it takes whole. One
    column without its axis is a Gather of a scalar, also where a loop counts the columns, and
    a GatherND of whole rows a Gather. Bounds that are computed but known count as constants.
    Fidelity: exact.

    Before:
        (float[N,8] x) => (float[N,2] y)
        <int64[1] a = {2}, int64[1] b = {-1}, int64[1] c = {0}, int64[1] axis = {1}> {
            u = Slice(x, a, b, axis)
            v = Slice(u, c, a, axis)
            y = Relu(v)
        }

    After:
        (float[N,8] x) => (float[N,2] y) <int64[1] a = {2}, int64[1] b = {4}, int64[1] axis = {1}> {
            v = Slice(x, a, b, axis)
            y = Relu(v)
        }
    """

    name = "simplify-slices"
    fidelity = Fidelity.EXACT
    rules = (
        slice_to_constants,
        slice_of_slice,
        gather_to_slice,
        gather_nd_to_gather,
        sliced_column_to_gather,
        counted_column_to_gather,
        split_to_nothing,
        pad_to_nothing,
    )
