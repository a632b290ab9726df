"""Ops that look elements up by position: Gather, GatherElements, GatherND, ReverseSequence.

Positions are data, so every one is held against the size of its axis before it is used. What
happens to one that is out of range is the policy of the compilation (`Lowering.oob`): the program
stops with a message that names the node, the nearest position is used, or the result is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, te, tirx
from tvm.script.ir_builder import tirx as T

from graphopt.ir import dims
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.ir.types import dtype_to_numpy
from graphopt.targets.cpu.kernels.gather import gather_axis, gather_rows
from graphopt.targets.kernels import bounds
from graphopt.targets.relax.loops import loops, require, row_major, store
from graphopt.targets.relax.lowering import Lowering, int64, lowers
from graphopt.targets.relax.operands import describe, is_static, same_sizes, tensor_input
from graphopt.targets.relax.scalar import const


def out_of_range(node: Node, size: Dim) -> str:
    """What the program says of an id that an axis of `size` does not have."""
    return f"graphopt: id out of range: {describe(node)} (axis of size {size})"


class Position:
    """An index found in data, checked against its axis, inside a kernel's loops.

    Attributes:
        at: the position, in [0, size) wherever it may be used.
        valid: when it may be used; None for always.
    """

    def __init__(self, lower: Lowering, node: Node, index: Any, dim: Dim) -> None:
        size = int64(lower.dim(dim))
        wide = T.bind(index.astype("int64"))
        if lower.oob != "zero":
            require(bounds.is_allowed(wide, size, lower.oob), out_of_range(node, dim))
        self.at = bounds.row_of(wide, size, lower.oob)
        self.valid = bounds.is_valid(wide, size) if lower.oob == "zero" else None


def all_valid(positions: list[Position]) -> Any:
    """When all of some positions may be used; None for always."""
    conditions = [position.valid for position in positions if position.valid is not None]
    return tirx.all(*conditions) if conditions else None


def load(buffer: Any, index: list[Any], valid: Any, otherwise: int = 0) -> Any:
    """An element of `buffer`, or what it is where `valid` does not hold."""
    if valid is None:
        return buffer[tuple(index)]
    return tirx.if_then_else(valid, buffer[tuple(index)], const(otherwise, str(buffer.dtype)))


def fill_of(lower: Lowering, node: Node) -> int:
    """What a GatherElements or GatherND has where there is no element, if that is to be zero."""
    return int(known_fill(lower, node)) if lower.oob == "zero" else 0


def known_fill(lower: Lowering, node: Node) -> np.ndarray:
    """The codes that stand for zero in the result of a lookup; see `zero_codes`.

    Raises:
        UnsupportedOpError: they are not known.
    """
    fill = node.attrs.get("_fill", np.zeros((), np.int64))
    if np.isnan(fill).any():
        reason = "which codes stand for zero in its result is not known; use --oob clamp or error"
        raise lower.unsupported(reason)
    return fill


# ------------------------------------------------------------------------ lookups


@lowers("Gather")
def _gather(lower: Lowering, node: Node) -> relax.Expr:
    data, ids = tensor_input(node, 0), tensor_input(node, 1)
    sizes = data.tensor.dims
    axis = node.attr("axis") % len(sizes)
    at = fixed_position(ids, sizes[axis])
    if at is not None:
        return column(lower, node, axis, at)
    if fills(lower, node):
        return filled(lower, node)
    outer, length, inner = dims.product(sizes[:axis]), sizes[axis], dims.product(sizes[axis + 1 :])
    count = lower.dim(dims.product(ids.tensor.dims))
    message, dtype = out_of_range(node, length), lower.checked_dtype(data.dtype)
    dtype = "uint16" if dtype == "bfloat16" else dtype
    flat = lower.reshape(lower.expr(ids), [count])
    if outer == 1 and is_static(length, inner):
        params = node.attrs.get("params")
        kernel = gather_rows(length, inner, dtype, ids.dtype, lower.oob, message, params)
        source, shape = [length, inner], [count, inner]
    else:
        extents = [size if isinstance(size, int) else None for size in (outer, length, inner)]
        kernel = gather_axis(*extents, dtype, ids.dtype, lower.oob, message)
        outer, length, inner = (lower.dim(size) for size in (outer, length, inner))
        source, shape = [outer, length, inner], [outer, count, inner]
    table = lower.reshape(lower.moved(data), source)
    (found,) = lower.kernel(kernel, [table, flat], [(shape, dtype)])
    return lower.reshape(lower.reinterpreted(found, data.dtype), lower.shape(node.output))


def fixed_position(ids: Value, length: Dim) -> int | None:
    """The one constant position that `ids` names, if it is inside whatever is run."""
    if ids.const is None or ids.const.size != 1 or not isinstance(length, int):
        return None
    at = int(ids.const.reshape(-1)[0])
    return at % length if -length <= at < length else None


def column(lower: Lowering, node: Node, axis: int, at: int) -> relax.Expr:
    """Gather of one constant position: it needs no check, and fuses with what reads it."""
    data, rank = tensor_input(node, 0), tensor_input(node, 1).rank
    assert rank is not None
    shape = lower.shape(node.output)

    def take(x: te.Tensor) -> te.Tensor:
        return te.compute(shape, lambda *i: x(*i[:axis], at, *i[axis + rank :]), name="column")

    return lower.te(take, lower.expr(data), name="column")


def fills(lower: Lowering, node: Node) -> bool:
    """True for a Gather of which rows that are not found are codes other than 0."""
    if lower.oob != "zero" or not np.any(node.attrs.get("_fill", 0)):
        return False
    ids, size = tensor_input(node, 1).const, tensor_input(node, 0).tensor.dims[node.attr("axis")]
    found = ids is not None and isinstance(size, int) and ((ids >= -size) & (ids < size)).all()
    return not found


def filled(lower: Lowering, node: Node) -> relax.Expr:
    """The same, with the codes that stand for zero; see `zero_codes`."""
    data, ids, fill = tensor_input(node, 0), tensor_input(node, 1), known_fill(lower, node)
    axis, rank = node.attr("axis") % len(data.tensor.dims), len(ids.tensor.dims)
    shape, size = lower.shape(node.output), int64(lower.dim(data.tensor.dims[axis]))
    fill = fill.reshape([1] * (len(shape) - fill.ndim) + list(fill.shape))
    codes, varied = (
        lower.constant(fill.astype(dtype_to_numpy(data.dtype))),
        np.array(fill.shape) > 1,
    )

    def take(x: te.Tensor, i: te.Tensor, zeros: te.Tensor) -> te.Tensor:
        def element(*o: Any) -> Any:
            before, place, after = o[:axis], o[axis : axis + rank], o[axis + rank :]
            index = i(*place).astype("int64")
            found = x(*before, bounds.row_of(index, size, lower.oob), *after)
            zero = zeros(*(k if wide else int64(0) for k, wide in zip(o, varied)))
            return tirx.if_then_else(bounds.is_valid(index, size), found, zero)

        return te.compute(shape, element, name="gather")

    return lower.te(take, lower.expr(data), lower.expr(ids), codes, name="gather")


@lowers("GatherElements")
def _gather_elements(lower: Lowering, node: Node) -> relax.Expr:
    data, ids = tensor_input(node, 0), tensor_input(node, 1)
    axis = node.attr("axis") % len(data.tensor.dims)
    shape = lower.shape(ids)
    fits, fill = fitting(lower, ids, data, axis), fill_of(lower, node)

    def body(source: Any, indices: Any, out: Any) -> None:
        require(fits, f"{describe(node)}: its indices are larger than its data")
        with T.grid(*map(int64, shape)) as index:
            index = as_index(index)
            place = Position(lower, node, indices[index], data.tensor.dims[axis])
            read = [*index[:axis], place.at, *index[axis + 1 :]]
            store(out, index, load(source, read, place.valid, fill))

    outs = [(shape, lower.checked_dtype(data.dtype))]
    return loops(lower, body, [lower.expr(data), lower.expr(ids)], outs)[0]


def as_index(loop_variables: Any) -> tuple[Any, ...]:
    """The variables of a loop nest; the builder gives a lone one without a tuple."""
    return (loop_variables,) if isinstance(loop_variables, tirx.Var) else tuple(loop_variables)


def fitting(lower: Lowering, ids: Value, data: Value, axis: int) -> Any:
    """Whether indices stay within the data on every axis but the one that they index."""
    pairs = [
        (int64(lower.dim(small)), int64(lower.dim(large)))
        for k, (small, large) in enumerate(zip(ids.tensor.dims, data.tensor.dims))
        if k != axis and small != large
    ]
    return tirx.all(tirx.const(True, "bool"), *(small <= large for small, large in pairs))


@lowers("GatherND")
def _gather_nd(lower: Lowering, node: Node) -> relax.Expr:
    data, ids = tensor_input(node, 0), tensor_input(node, 1)
    sizes, shared = data.tensor.dims, node.attr("batch_dims")
    depth = tuple_size(lower, ids)
    indexed, rest = sizes[shared : shared + depth], sizes[shared + depth :]
    batch, count, inner = (
        lower.dim(dims.product(part)) for part in (sizes[:shared], ids.tensor.dims[shared:-1], rest)
    )
    extents = [lower.dim(size) for size in indexed]
    same, fill = same_sizes(lower, sizes[:shared], ids.tensor.dims[:shared]), fill_of(lower, node)

    def body(source: Any, indices: Any, out: Any) -> None:
        require(same, f"{describe(node)}: its data and indices disagree on the batch")
        with T.grid(int64(batch), int64(count)) as (b, i):
            at = b * int64(count) + i
            places = [Position(lower, node, indices[at, k], d) for k, d in enumerate(indexed)]
            row = row_major([place.at for place in places], extents)
            valid = all_valid(places)
            with T.serial(int64(inner)) as j:
                store(out, [b, i, j], load(source, [b, row, j], valid, fill))

    flat = lower.reshape(lower.expr(data), [batch, lower.dim(dims.product(indexed)), inner])
    tuples = lower.reshape(lower.expr(ids), [lower.dim(dims.product(ids.tensor.dims[:-1])), depth])
    outs = [([batch, count, inner], lower.checked_dtype(data.dtype))]
    (found,) = loops(lower, body, [flat, tuples], outs)
    return lower.reshape(found, lower.shape(node.output))


def tuple_size(lower: Lowering, ids: Value) -> int:
    """How many indices make up one position."""
    depth = ids.tensor.dims[-1]
    if not isinstance(depth, int):
        raise lower.unsupported("how many axes it indexes is known only at run time")
    return depth


@lowers("ReverseSequence")
def _reverse_sequence(lower: Lowering, node: Node) -> relax.Expr:
    data, lengths = tensor_input(node, 0), tensor_input(node, 1)
    time, batch = node.attr("time_axis"), node.attr("batch_axis")
    shape, steps = lower.shape(data), int64(lower.dim(data.tensor.dims[time]))
    same = same_sizes(lower, [data.tensor.dims[batch]], lengths.tensor.dims)

    def body(source: Any, sizes: Any, out: Any) -> None:
        require(same, f"{describe(node)}: it needs a length per sequence")
        with T.serial(int64(shape[batch])) as b:
            size = T.bind(sizes[b].astype("int64"))
            if lower.oob == "error":
                message = out_of_range(node, data.tensor.dims[time])
                require(tirx.all(size >= int64(0), size <= steps), message)
            length = T.bind(tirx.max(tirx.min(size, steps), int64(0)))
            with T.grid(*(int64(n) for k, n in enumerate(shape) if k != batch)) as others:
                index = list(as_index(others))
                index.insert(batch, b)
                read = list(index)
                turned = length - int64(1) - index[time]
                read[time] = tirx.Select(index[time] < length, turned, index[time])
                store(out, index, source[tuple(read)])

    outs = [(shape, lower.checked_dtype(data.dtype))]
    return loops(lower, body, [lower.expr(data), lower.expr(lengths)], outs)[0]
