"""TopK, NonZero, Unique and Compress: results that depend on the data's order or zeros."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, te, tirx

from graphopt.ir.dims import Dim, product
from graphopt.ir.graph import Node, Value
from graphopt.targets.cpu.kernels import selection
from graphopt.targets.cpu.kernels.topk import topk as best
from graphopt.targets.relax.lowering import Lowering, int64, lowers
from graphopt.targets.relax.operands import bind_shape, describe, elements, tensor_input


def _fixed(size: Any) -> int | None:
    return size if isinstance(size, int) else None


def _flat(lower: Lowering, value: Value) -> tuple[relax.Expr, Any]:
    """All elements of a value in one axis, and how many they are."""
    count = lower.dim(product(value.tensor.dims))
    return lower.reshape(lower.expr(value), [count]), count


def counted(lower: Lowering, value: Value, axis: int, count: relax.Expr) -> Any:
    """The run-time size of `value` along `axis`, which is `count`."""
    size: Dim = value.tensor.dims[axis]
    if isinstance(size, int):
        return size
    return lower.bind_size(str(size), count)


Sort = Callable[[Lowering, relax.Expr, Sequence[Any], str, bool], relax.Expr]
"""Of a cube [outer, n, inner], its sizes, its dtype and whether the greatest come first: the
positions of the elements along the middle axis, sorted, int64 [outer, inner, n]."""


@lowers("TopK")
def _topk(lower: Lowering, node: Node) -> list[relax.Expr]:
    cube, (outer, length, inner), taken = topk_operands(lower, node)
    dtype, largest = node.output.dtype, bool(node.attr("largest"))
    sizes = map(_fixed, (outer, length, inner, taken))
    shape = [outer, taken, inner]
    results = lower.kernel(best(*sizes, dtype, largest), [cube], [(shape, dtype), (shape, "int64")])
    return [lower.reshape(part, lower.shape(v)) for part, v in zip(results, node.outputs)]


def topk_operands(lower: Lowering, node: Node) -> tuple[relax.Expr, list[Any], Any]:
    """The data of a TopK as a cube [outer, n, inner], its sizes, and how many are taken."""
    data = node.inputs[0]
    assert data is not None
    dims = data.tensor.dims
    axis = node.attr("axis") % len(dims)
    sizes = [
        lower.dim(product(part)) for part in (dims[:axis], dims[axis : axis + 1], dims[axis + 1 :])
    ]
    count, shape = elements(lower, tensor_input(node, 1))[0], lower.shape(data)
    check = (int64(count) >= int64(0), f"{describe(node)}: k is negative")
    for value in node.outputs:
        if not all(map(lower.knows, value.tensor.dims)):
            bind_shape(lower, value, [*shape[:axis], count, *shape[axis + 1 :]], [check])
    taken = lower.dim(node.output.tensor.dims[axis])
    return lower.reshape(lower.expr(data), sizes), sizes, taken


def topk(lower: Lowering, node: Node, sort: Sort) -> list[relax.Expr]:
    """The outputs of a TopK, whose elements `sort` puts in order."""
    cube, (outer, length, inner), taken = topk_operands(lower, node)
    order = sort(lower, cube, (outer, length, inner), node.output.dtype, bool(node.attr("largest")))
    shape = [outer, taken, inner]
    fits = [(tirx.LE(int64(taken), int64(length)), "TopK: k is larger than the axis")]

    known = isinstance(taken, int) and isinstance(length, int) and taken <= length
    values = lower.te(
        lambda x, by: te.compute(shape, lambda o, j, i: x(o, by(o, i, j), i), name="values"),
        cube,
        order,
        name="topk_values",
        checks=() if known else fits,
    )
    indices = lower.te(
        lambda by: te.compute(shape, lambda o, j, i: by(o, i, j), name="indices"),
        order,
        name="topk_indices",
    )
    results = zip((values, indices), node.outputs)
    return [lower.reshape(part, lower.shape(value)) for part, value in results]


def _positions(lower: Lowering, value: Value, axis: int, result: Value) -> tuple[relax.Expr, Any]:
    """Flat positions of the non-zero elements of `value`; their number is a size of `result`."""
    flat, _ = _flat(lower, value)
    (count,) = lower.kernel(selection.nonzero_count(value.dtype), [flat], [([1], "int64")])
    size = counted(lower, result, axis, count)
    (found,) = lower.kernel(selection.nonzero_fill(value.dtype), [flat], [([size], "int64")])
    return found, size


Positions = Callable[[Lowering, Value, int, Value], tuple[relax.Expr, Any]]
"""See `_positions`."""


@lowers("NonZero")
def _nonzero(lower: Lowering, node: Node) -> relax.Expr:
    return nonzero(lower, node, _positions)


def nonzero(lower: Lowering, node: Node, positions: Positions) -> relax.Expr:
    """The output of a NonZero, whose flat positions `positions` finds.

    Raises:
        UnsupportedOpError: of one number, whose position has 0 coordinates in the standard and 1 in
            ONNX Runtime.
    """
    data = tensor_input(node, 0)
    if not data.tensor.dims:
        raise lower.unsupported("it is asked of one number; reshape that to [1] first")
    found, count = positions(lower, data, 1, node.output)
    shape = lower.shape(data)
    strides = [
        int64(lower.dim(product(data.tensor.dims[axis + 1 :]))) for axis in range(len(shape))
    ]

    def coordinates(flat: te.Tensor) -> te.Tensor:
        def coordinate(axis: Any, j: Any) -> Any:
            chosen: Any = int64(0)
            for k in range(len(shape)):
                place = tirx.floormod(tirx.floordiv(flat(j), strides[k]), int64(shape[k]))
                chosen = tirx.if_then_else(axis == k, place, chosen)
            return chosen

        return te.compute([len(shape), count], coordinate, name="nonzero")

    return lower.te(coordinates, found, name="nonzero")


@lowers("Compress")
def _compress(lower: Lowering, node: Node) -> relax.Expr:
    return compress(lower, node, _positions)


def compress(lower: Lowering, node: Node, positions: Positions) -> relax.Expr:
    """The output of a Compress, the positions of whose condition `positions` finds."""
    data, condition = node.inputs[0], node.inputs[1]
    assert data is not None and condition is not None
    axis = node.attrs.get("axis")
    if axis is None:
        source, length = _flat(lower, data)
        shape, at = [length], 0
    else:
        source, shape = lower.expr(data), lower.shape(data)
        at = axis % len(shape)
    found, count = positions(lower, condition, at, node.output)
    (given,) = lower.shape(condition)
    message = "Compress: the condition is longer than the axis"
    checks = [(tirx.LE(int64(given), int64(shape[at])), message)]
    return _taken(lower, source, [*shape[:at], count, *shape[at + 1 :]], at, found, checks)


def _taken(
    lower: Lowering,
    source: relax.Expr,
    shape: Sequence[Any],
    axis: int,
    places: relax.Expr,
    checks: Sequence[Any] = (),
) -> relax.Expr:
    """What stands at `places` of an axis of `source`; `shape` is the result's."""

    def take(x: te.Tensor, by: te.Tensor) -> te.Tensor:
        return te.compute(shape, lambda *i: x(*i[:axis], by(i[axis]), *i[axis + 1 :]), name="taken")

    return lower.te(take, source, places, name="taken", checks=checks)


@lowers("Unique")
def _unique(lower: Lowering, node: Node) -> list[relax.Expr]:
    return unique(lower, node, _distinct)


Distinct = Callable[[Lowering, Node, relax.Expr, Any, Any, int], tuple[list[relax.Expr], Any]]
"""Of rows [n, width] of a Unique, along an axis of its first result: the places of the first ones
of each kind, which kind stands where and how often each does; and how many kinds there are."""


def unique(lower: Lowering, node: Node, distinct: Distinct) -> list[relax.Expr]:
    """The outputs of a Unique, whose rows `distinct` tells apart."""
    data, axis = tensor_input(node, 0), node.attrs.get("axis")
    if axis is None:
        source, length = _flat(lower, data)
        shape, at = [length], 0
    else:
        source, shape = lower.expr(data), list(lower.shape(data))
        at = axis % len(shape)
    dims = data.tensor.dims if axis is not None else (product(data.tensor.dims),)
    outer, inner = (lower.dim(product(part)) for part in (dims[:at], dims[at + 1 :]))
    rows, length = lower.reshape(source, [outer, shape[at], inner]), shape[at]

    def turned(x: te.Tensor) -> te.Tensor:
        return te.compute([length, outer, inner], lambda j, o, i: x(o, j, i), name="turned")

    if outer != 1:
        rows = lower.te(turned, rows, name="turned")
    width = lower.dim(product((*dims[:at], *dims[at + 1 :])))
    rows = lower.reshape(rows, [length, width])
    found, size = distinct(lower, node, rows, length, width, at)
    values = _taken(lower, source, [*shape[:at], size, *shape[at + 1 :]], at, found[0])
    return [values, *found][: len(node.outputs)]


def _distinct(
    lower: Lowering, node: Node, rows: relax.Expr, length: Any, width: Any, axis: int
) -> tuple[list[relax.Expr], Any]:
    dtype, line = node.output.dtype, ([length], "int64")
    sort = selection.argsort(_fixed(length), _fixed(width), dtype)
    order, _ = lower.kernel(sort, [rows], [line, line])
    (starts,) = lower.kernel(selection.starts(dtype), [rows, order], [([length], "bool")])
    (count,) = lower.kernel(selection.nonzero_count("bool"), [starts], [([1], "int64")])
    size = counted(lower, node.output, axis, count)
    group, fill = ([size], "int64"), selection.distinct_fill(bool(node.attr("sorted")))
    return list(lower.kernel(fill, [starts, order], [group, line, group, group])[:3]), size
