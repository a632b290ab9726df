"""Ops that write to positions found in data: ScatterElements, ScatterND, TensorScatter.

Updates are applied one after the other in row-major order, so that the result does not depend on
the machine: of several to one place, the last one stays. Positions are checked as in `indexing`;
one that is out of range writes to the nearest place, or nowhere, where it is not an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax, tirx
from tvm.script.ir_builder import tirx as T

from graphopt.ir import dims
from graphopt.ir.graph import Node, Value
from graphopt.targets.relax import scalar
from graphopt.targets.relax.loops import loops, require, row_major, store
from graphopt.targets.relax.lowering import Lowering, int64, lowers
from graphopt.targets.relax.operands import describe, same_sizes, tensor_input
from graphopt.targets.relax.ops.indexing import (
    Position,
    all_valid,
    as_index,
    fitting,
    out_of_range,
    tuple_size,
)

Scalar = Any

_REDUCTIONS: dict[str, Callable[[Scalar, Scalar], Scalar]] = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": scalar.maximum,
    "min": scalar.minimum,
}


def reduction_of(lower: Lowering, node: Node) -> Callable[[Any, Any, Any], Scalar]:
    """What an element becomes when an update arrives: of the output, its index and the update."""
    kind, dtype = node.attr("reduction", "none"), lower.checked_dtype(node.output.dtype)
    if kind not in _REDUCTIONS or (kind != "none" and dtype == "bool"):
        raise lower.unsupported(f"the reduction {kind!r} of {dtype} elements is not compiled")
    if kind == "none":
        return lambda out, index, update: update
    work = scalar.working_dtype(dtype)

    def reduce(out: Any, index: Any, update: Any) -> Scalar:
        old, new = scalar.cast(out[tuple(index)], work), scalar.cast(update, work)
        return scalar.cast(_REDUCTIONS[kind](old, new), dtype)

    return reduce


def _copy(source: Any, target: Any) -> None:
    """Statements that copy one buffer to another of the same shape."""
    with T.grid(*source.shape) as index:
        index = as_index(index)
        store(target, index, source[index])


def _store_if(valid: Any, out: Any, index: list[Any], value: Scalar) -> None:
    if valid is None:
        store(out, index, value)
        return
    with T.If(valid), T.Then():
        store(out, index, value)


@lowers("ScatterElements", "Scatter")
def _scatter_elements(lower: Lowering, node: Node) -> relax.Expr:
    data, ids, updates = (tensor_input(node, k) for k in range(3))
    axis = node.attr("axis") % len(data.tensor.dims)
    shape, reduce = lower.shape(ids), reduction_of(lower, node)
    fits = tirx.all(fitting(lower, node, ids, data, axis), fitting(lower, node, ids, updates, -1))

    def body(source: Any, indices: Any, changes: Any, out: Any) -> None:
        require(fits, f"{describe(node)}: its indices are larger than its data or updates")
        _copy(source, out)
        with T.grid(*map(int64, shape)) as index:
            index = as_index(index)
            place = Position(lower, node, indices[index], data.tensor.dims[axis])
            target = [*index[:axis], place.at, *index[axis + 1 :]]
            _store_if(place.valid, out, target, reduce(out, target, changes[index]))

    args = [lower.expr(value) for value in (data, ids, updates)]
    return loops(lower, body, args, [(lower.shape(data), data.dtype)])[0]


@lowers("ScatterND")
def _scatter_nd(lower: Lowering, node: Node) -> relax.Expr:
    data, ids, updates = (tensor_input(node, k) for k in range(3))
    sizes, depth, reduce = data.tensor.dims, tuple_size(lower, ids), reduction_of(lower, node)
    indexed, rest = sizes[:depth], sizes[depth:]
    extents = [lower.dim(size) for size in indexed]
    count, inner = lower.dim(dims.product(ids.tensor.dims[:-1])), lower.dim(dims.product(rest))
    fits = same_sizes(lower, updates.tensor.dims, [*ids.tensor.dims[:-1], *rest])

    def body(source: Any, indices: Any, changes: Any, out: Any) -> None:
        require(fits, f"{describe(node)}: its updates do not fit its indices")
        _copy(source, out)
        with T.serial(int64(count)) as i:
            places = [Position(lower, node, indices[i, k], d) for k, d in enumerate(indexed)]
            row = row_major([place.at for place in places], extents)
            with T.serial(int64(inner)) as j:
                value = reduce(out, [row, j], changes[i * int64(inner) + j])
                _store_if(all_valid(places), out, [row, j], value)

    flat = [lower.dim(dims.product(indexed)), inner]
    args = [
        lower.reshape(lower.expr(data), flat),
        lower.reshape(lower.expr(ids), [count, depth]),
        lower.reshape(lower.expr(updates), [lower.dim(dims.product(updates.tensor.dims))]),
    ]
    (result,) = loops(lower, body, args, [(flat, data.dtype)])
    return lower.reshape(result, lower.shape(node.output))


@lowers("TensorScatter")
def _tensor_scatter(lower: Lowering, node: Node) -> relax.Expr:
    cache, update, starts = tensor_input(node, 0), tensor_input(node, 1), node.input(2)
    sizes, given = cache.tensor.dims, update.tensor.dims
    axis, circular = node.attr("axis") % len(sizes), node.attr("mode") == "circular"
    shape = batch, middle, _, inner = _around(lower, cache, axis)
    length, steps = int64(lower.dim(sizes[axis])), int64(lower.dim(given[axis]))
    fits = tirx.all(
        same_sizes(lower, [*sizes[:axis], *sizes[axis + 1 :]], [*given[:axis], *given[axis + 1 :]]),
        same_sizes(lower, sizes[:1], starts.tensor.dims if starts is not None else sizes[:1]),
    )

    def body(source: Any, changes: Any, *rest: Any) -> None:
        *indices, out = rest
        require(fits, f"{describe(node)}: its operands disagree on their sizes")
        _copy(source, out)
        with T.serial(int64(batch)) as b:
            start = T.bind(indices[0][b].astype("int64")) if indices else int64(0)
            valid = _is_start(lower, node, start, length, steps, circular)
            with T.grid(int64(middle), steps, int64(inner)) as (m, s, j):
                at = _written(start, s, length, steps, circular)
                _store_if(valid, out, [b, m, at, j], changes[b, m, s, j])

    args = [
        lower.reshape(lower.expr(cache), shape),
        lower.reshape(lower.expr(update), _around(lower, update, axis)),
    ]
    if starts is not None:
        args.append(lower.expr(starts))
    dtype = lower.checked_dtype(cache.dtype)
    (result,) = loops(lower, body, args, [(shape, dtype)])
    return lower.reshape(result, lower.shape(node.output))


def _around(lower: Lowering, value: Value, axis: int) -> list[Any]:
    """The sizes of the batch, of the axes up to `axis`, of it, and of the axes after it."""
    sizes = value.tensor.dims
    parts = sizes[:1], sizes[1:axis], sizes[axis : axis + 1], sizes[axis + 1 :]
    return [lower.dim(dims.product(part)) for part in parts]


def _is_start(
    lower: Lowering, node: Node, start: Any, length: Any, steps: Any, circular: bool
) -> Any:
    """Check where a write begins; returns when it may happen, None for always."""
    fits = tirx.all(start >= int64(0), steps <= length)
    fits = tirx.all(fits, start < length if circular else start <= length - steps)
    if lower.oob == "zero":
        return fits
    message = out_of_range(node, node.inputs[0].tensor.dims[node.attr("axis")])  # type: ignore[union-attr]
    require(fits if lower.oob == "error" else steps <= length, message)
    return None


def _written(start: Any, step: Any, length: Any, steps: Any, circular: bool) -> Any:
    """The position that a step of the update is written to."""
    last = length - int64(1) if circular else length - steps
    at = tirx.max(tirx.min(start, last), int64(0)) + step
    return tirx.Select(at < length, at, at - length) if circular else at
