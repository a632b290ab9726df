"""Pooling over windows and over whole images, unpooling, and normalization over channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import relax, te, tirx
from tvm.script.ir_builder import tirx as T

from graphopt.ir.graph import Node
from graphopt.ir.windows import Windows
from graphopt.targets.relax import reduction, scalar
from graphopt.targets.relax.loops import loops, require, row_major, store
from graphopt.targets.relax.lowering import Lowering, compute, int64, lowers
from graphopt.targets.relax.operands import bind_shape, describe, elements, tensor_input
from graphopt.targets.relax.reduction import Region
from graphopt.targets.relax.scalar import const
from graphopt.targets.relax.windows import (
    finished,
    inside,
    offsets,
    padded,
    reduced,
    starts,
    tap_axes,
    windowed_shape,
    windows_of,
)

Scalar = Any


# -------------------------------------------------------------------- greatest


@lowers("MaxPool")
def _max_pool(lower: Lowering, node: Node) -> relax.Expr | list[relax.Expr]:
    data, windows = tensor_input(node, 0), windows_of(lower, node)
    dtype, lead = lower.checked_dtype(data.dtype), lower.shape(data)[:2]
    work = scalar.working_dtype(dtype)
    shape = windowed_shape(lower, node, windows)

    def greatest(x: te.Tensor) -> te.Tensor:
        fill = const(scalar.lowest(work), work)
        read = padded(lower, windows, lead, lambda *i: scalar.cast(x(*i), work), fill)
        return reduced(windows, shape, read, reduction.greatest)

    source = lower.expr(data)
    best = lower.te(greatest, source)
    values = best
    if work != dtype:
        values = finished(lower, lambda t, *i: scalar.cast(t(*i), dtype), shape, best)
    if len(node.outputs) == 1:
        return values
    return [values, _positions(lower, node, windows, source, best)]


def _positions(
    lower: Lowering, node: Node, windows: Windows, source: relax.Expr, best: relax.Expr
) -> relax.Expr:
    """Where in the whole tensor `source` the first of the greatest elements of each window is."""
    shape, sizes = list(best.ty.shape.values), [lower.dim(size) for size in windows.sizes]
    work, missing = str(best.ty.dtype), const(scalar.highest("int64"), "int64")

    def first(x: te.Tensor, peak: te.Tensor) -> te.Tensor:
        taps = tap_axes(windows)

        def element(n: Any, c: Any, *o: Any) -> Scalar:
            far = offsets(windows, [tap.var for tap in taps])
            at = [start + offset for start, offset in zip(starts(lower, windows, o), far)]
            value = scalar.cast(x(n, c, *at), work)
            found = tirx.EQ(value, peak(n, c, *o))
            if scalar.is_float(work):
                found = tirx.any(found, tirx.isnan(value))
            conditions = inside(lower, windows, at)
            if conditions:
                found = tirx.if_then_else(tirx.all(*conditions), found, tirx.const(False, "bool"))
            return reduction.least(tirx.Select(found, row_major(at, sizes), missing), axis=taps)

        return compute(shape, element, name="first")

    def numbered(t: te.Tensor, *i: Any) -> Scalar:
        place, lead = t(*i), row_major(i[:2], shape[:2])
        for size in sizes:
            lead = lead * int64(size)
        return lead + (_column_major(place, sizes) if node.attr("storage_order") else place)

    return finished(lower, numbered, shape, lower.te(first, source, best))


def _column_major(place: Any, sizes: Sequence[Any]) -> Any:
    """The position in column-major order of the element at row-major position `place`."""
    index = []
    for size in reversed(sizes):
        index.append(tirx.floormod(place, int64(size)))
        place = tirx.floordiv(place, int64(size))
    return row_major(index, sizes[::-1])


class Unpooling:
    """Where a MaxUnpool puts elements.

    Attributes:
        shape: that of its output.
        complaint: what the program says of an index that lies outside of it.
    """

    def __init__(self, lower: Lowering, node: Node) -> None:
        source, given = lower.shape(tensor_input(node, 0)), node.input(2)
        windows = windows_of(lower, node)
        spans = zip(source[2:], windows.strides, windows.kernel, windows.before, windows.after)
        inner = [(count - 1) * stride + k - b - a for count, stride, k, b, a in spans]
        self._pooled = [int64(size) for size in (*source[:2], *inner)]
        wanted = self._pooled if given is None else map(int64, elements(lower, given))
        self.shape = [int64(size) for size in bind_shape(lower, node.output, list(wanted))]
        self.complaint = f"{describe(node)}: an index lies outside of its output"

    def target(self, place: Any) -> tuple[list[Any], Any]:
        """Where an element goes whose index is `place`, and whether there is such a position."""
        index: list[Any] = []
        for size in reversed(self._pooled):
            index.insert(0, tirx.floormod(place, size))
            place = tirx.floordiv(place, size)
        fits = [at < size for at, size in zip(index, self.shape)]
        return index, tirx.all(tirx.EQ(place, int64(0)), *fits)


@lowers("MaxUnpool")
def _max_unpool(lower: Lowering, node: Node) -> relax.Expr:
    data, places = tensor_input(node, 0), tensor_input(node, 1)
    to, dtype, source = Unpooling(lower, node), lower.checked_dtype(data.dtype), lower.shape(data)

    def body(values: Any, indices: Any, target: Any) -> None:
        with T.grid(*to.shape) as i:
            store(target, i, const(0, dtype))
        with T.grid(*(int64(size) for size in source)) as i:
            index, fits = to.target(indices[tuple(i)])
            require(fits, to.complaint)
            store(target, index, values[tuple(i)])

    (result,) = loops(lower, body, [lower.expr(data), lower.expr(places)], [(to.shape, dtype)])
    return result


# -------------------------------------------------------------------- averages


@lowers("AveragePool")
def _average_pool(lower: Lowering, node: Node) -> relax.Expr:
    data, windows = tensor_input(node, 0), windows_of(lower, node)
    dtype, lead = lower.checked_dtype(data.dtype), lower.shape(data)[:2]
    work, count_padding = scalar.working_dtype(dtype), bool(node.attr("count_include_pad"))
    shape = windowed_shape(lower, node, windows)

    def total(x: te.Tensor) -> te.Tensor:
        read = padded(lower, windows, lead, lambda *i: scalar.cast(x(*i), work), const(0, work))
        return reduced(windows, shape, read, reduction.total)

    def mean(t: te.Tensor, *i: Any) -> Scalar:
        count = _elements(lower, windows, i[2:], count_padding)
        return scalar.cast(t(*i) / scalar.cast(count, work), dtype)

    return finished(lower, mean, shape, lower.te(total, lower.expr(data)))


def _elements(lower: Lowering, windows: Windows, window: Sequence[Any], padding: bool) -> Any:
    """How many elements a window covers, those of the padding included if `padding`."""
    total: Any = int64(1)
    edges = zip(starts(lower, windows, window), windows.sizes, windows.before, windows.after)
    steps = zip(windows.kernel, windows.dilations)
    for (start, size, before, after), (kernel, dilation) in zip(edges, steps):
        end = int64(lower.dim(size + after if padding else size))
        low = int64(0) - int64(lower.dim(before)) if padding else int64(0)
        step = int64(dilation)
        first = tirx.max(tirx.floordiv(low - start + step - int64(1), step), int64(0))
        last = tirx.min(tirx.floordiv(end - start + step - int64(1), step), int64(kernel))
        total = total * (last - first)
    return total


@lowers("LpPool")
def _lp_pool(lower: Lowering, node: Node) -> relax.Expr:
    data, windows, p = tensor_input(node, 0), windows_of(lower, node), node.attr("p")
    dtype, lead = lower.checked_dtype(data.dtype), lower.shape(data)[:2]
    work = scalar.working_dtype(dtype)
    shape = windowed_shape(lower, node, windows)

    def total(x: te.Tensor) -> te.Tensor:
        def load(*i: Any) -> Scalar:
            return _power(scalar.cast(x(*i), work), p)

        read = padded(lower, windows, lead, load, const(0, work))
        return reduced(windows, shape, read, reduction.total)

    sums = lower.te(total, lower.expr(data))
    return finished(lower, lambda t, *i: scalar.cast(_root(t(*i), p), dtype), shape, sums)


def _power(x: Scalar, p: int) -> Scalar:
    """`|x| ** p`"""
    size = scalar.absolute(x)
    if p in (1, 2):
        return size if p == 1 else x * x
    return scalar.libm("pow", size, const(float(p), scalar.dtype_of(x)))


def _root(x: Scalar, p: int) -> Scalar:
    """The `p`-th root of a number that is not negative."""
    if p in (1, 2):
        return x if p == 1 else tirx.sqrt(x)
    return scalar.libm("pow", x, const(1 / p, scalar.dtype_of(x)))


# ------------------------------------------------------------------- all of it


@lowers("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(lower: Lowering, node: Node) -> relax.Expr:
    data, op, p = tensor_input(node, 0), node.op_type, node.attr("p", 0)
    shape, dtype = lower.shape(data), lower.checked_dtype(data.dtype)
    work, region = scalar.working_dtype(dtype), Region.over(shape, range(2, len(shape)))
    reducer = reduction.greatest if op == "GlobalMaxPool" else reduction.total

    def reduce(x: te.Tensor) -> te.Tensor:
        def read(*i: Any) -> Scalar:
            value = scalar.cast(x(*i), work)
            return _power(value, p) if op == "GlobalLpPool" else value

        return region.reduce(read, reducer, "reduce")

    def finish(t: te.Tensor, *i: Any) -> Scalar:
        value = t(*i)
        if op == "GlobalAveragePool":
            value = value / scalar.cast(region.count, work)
        return scalar.cast(_root(value, p) if op == "GlobalLpPool" else value, dtype)

    return finished(lower, finish, region.kept, lower.te(reduce, lower.expr(data)))


# ------------------------------------------------------------------------- LRN


@lowers("LRN")
def _lrn(lower: Lowering, node: Node) -> relax.Expr:
    data, size = tensor_input(node, 0), node.attr("size")
    shape, dtype = lower.shape(data), lower.checked_dtype(data.dtype)
    work, depth = scalar.working_dtype(dtype), int64(shape[1])
    bias, beta = const(node.attr("bias"), work), const(node.attr("beta"), work)
    alpha = const(node.attr("alpha") / size, work)
    before = math.floor((size - 1) / 2)

    def emit(x: te.Tensor) -> te.Tensor:
        tap = te.reduce_axis((0, int64(size)), "tap")

        def square(*i: Any) -> Scalar:
            c = i[1] + tap.var - int64(before)
            value = scalar.cast(x(i[0], c, *i[2:]), work)
            inside = tirx.all(c >= int64(0), c < depth)
            value = tirx.if_then_else(inside, value * value, const(0, work))
            return reduction.total(value, axis=[tap])

        return compute(shape, square, name="squares")

    def scaled(sums: te.Tensor, x: te.Tensor, *i: Any) -> Scalar:
        scale = scalar.libm("pow", bias + alpha * sums(*i), beta)
        return scalar.cast(scalar.cast(x(*i), work) / scale, dtype)

    source = lower.expr(data)
    return finished(lower, scaled, shape, lower.te(emit, source), source)
