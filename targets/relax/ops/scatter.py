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
    fits = tirx.all(fitting(lower, ids, data, axis), fitting(lower, ids, updates, -1))

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


class CacheWrite:
    """What a TensorScatter writes where: steps of [batch, middle, steps, inner] from a start on.

    Attributes:
        shape: that of the cache, [batch, middle, length, inner].
        starts: where each sample's steps begin; None for at 0.
        fits: whether the operands agree on their sizes.
        complaint: what the program says where they do not.
    """

    def __init__(self, lower: Lowering, node: Node) -> None:
        cache, update, self.starts = tensor_input(node, 0), tensor_input(node, 1), node.input(2)
        sizes, given = cache.tensor.dims, update.tensor.dims
        axis = node.attr("axis") % len(sizes)
        self.circular = node.attr("mode") == "circular"
        self.shape, changed = (_around(lower, value, axis) for value in (cache, update))
        self.length, self.steps = int64(self.shape[2]), int64(changed[2])
        others = [[*all_[:axis], *all_[axis + 1 :]] for all_ in (sizes, given)]
        lengths = sizes[:1] if self.starts is None else self.starts.tensor.dims
        self.fits = tirx.all(same_sizes(lower, *others), same_sizes(lower, sizes[:1], lengths))
        self.complaint = f"{describe(node)}: its operands disagree on their sizes"
        self.dtype = lower.checked_dtype(cache.dtype)
        self.arguments = [
            lower.reshape(lower.expr(cache), self.shape),
            lower.reshape(lower.expr(update), changed),
        ]
        if self.starts is not None:
            self.arguments.append(lower.expr(self.starts))

    def is_start(self, start: Any) -> Any:
        """Whether steps may begin there."""
        last = self.length - int64(1) if self.circular else self.length - self.steps
        return tirx.all(start >= int64(0), self.steps <= self.length, start <= last)

    def first(self, start: Any) -> Any:
        """The position nearest to `start` where they may."""
        last = self.length - int64(1) if self.circular else self.length - self.steps
        return tirx.max(tirx.min(start, last), int64(0))


@lowers("TensorScatter")
def _tensor_scatter(lower: Lowering, node: Node) -> relax.Expr:
    write, oob = CacheWrite(lower, node), lower.oob
    batch, middle, _, inner = write.shape
    length, steps = write.length, write.steps
    message = out_of_range(node, tensor_input(node, 0).tensor.dims[node.attr("axis")])

    def body(source: Any, changes: Any, *rest: Any) -> None:
        *starts, out = rest
        require(write.fits, write.complaint)
        _copy(source, out)
        with T.serial(int64(batch)) as b:
            start = T.bind(starts[0][b].astype("int64")) if starts else int64(0)
            valid = write.is_start(start)
            if oob != "zero":
                require(valid if oob == "error" else steps <= length, message)
            with T.grid(int64(middle), steps, int64(inner)) as (m, s, j):
                at = write.first(start) + s
                if write.circular:
                    at = tirx.Select(at < length, at, at - length)
                _store_if(valid if oob == "zero" else None, out, [b, m, at, j], changes[b, m, s, j])

    (result,) = loops(lower, body, write.arguments, [(write.shape, write.dtype)])
    return lower.reshape(result, lower.shape(node.output))


def _around(lower: Lowering, value: Value, axis: int) -> list[Any]:
    """The sizes of the batch, of the axes up to `axis`, of it, and of the axes after it."""
    sizes = value.tensor.dims
    parts = sizes[:1], sizes[1:axis], sizes[axis : axis + 1], sizes[axis + 1 :]
    return [lower.dim(dims.product(part)) for part in parts]
