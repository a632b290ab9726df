"""Concatenations, and slices and splits of them, with nothing superfluous."""

from __future__ import annotations

from graphopt.ir.dims import product
from graphopt.ir.graph import Node, Value
from graphopt.passes._concats import axis_of, concat, restacked, sliced
from graphopt.passes._positions import Positions
from graphopt.passes._shapes import reshaped, slice_bounds
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

x = var("x")


@rule(op.Concat(x, ...))
def concat_of_concat(rw: Rewriter, node: Node) -> Value | NoMatch:
    """Concat(Concat(a, b), c) -> Concat(a, b, c), and empty operands dropped"""
    axis = axis_of(node)
    if axis is None:
        return NoMatch("the rank is not known")
    flat: list[Value] = []
    for value in node.operands:
        inner = value.producer
        alone = len(value.uses) == 1 and inner is not None and inner.graph is node.graph
        if alone and inner is not None and inner.op == "Concat" and axis_of(inner) == axis:
            flat += inner.operands
        elif value.tensor.dims[axis] != 0:
            flat.append(value)
    if flat == node.operands or not flat:
        return NoMatch("no operand is a concatenation of its own or empty")
    return concat(rw, flat, axis)


@rule(op.Concat(x, ...))
def concat_of_slices(rw: Rewriter, node: Node) -> Value | NoMatch:
    """Concat(x[:, 0:2], x[:, 2:5], z) -> Concat(x[:, 0:5], z)"""
    axis = axis_of(node)
    if axis is None:
        return NoMatch("the rank is not known")
    merged: list[Value | tuple[Value, int, int]] = []
    for value in node.operands:
        piece = _piece(value, axis)
        last = merged[-1] if merged else None
        if (
            piece is not None
            and isinstance(last, tuple)
            and last[0] is piece[0]
            and last[2] == piece[1]
        ):
            merged[-1] = (last[0], last[1], piece[2])
        else:
            merged.append(piece or value)
    if len(merged) == len(node.inputs):
        return NoMatch("no operands are neighbouring slices that nobody else reads")
    return concat(rw, [sliced(rw, entry, axis) for entry in merged], axis)


def _piece(value: Value, axis: int) -> tuple[Value, int, int] | None:
    """The value, start and end that `value` is a slice of along `axis`, and nothing else reads."""
    node = value.producer
    if node is None or node.op != "Slice" or len(value.uses) != 1:
        return None
    bounds, data = slice_bounds(node), node.inputs[0]
    if bounds is None or set(bounds) != {axis} or data is None:
        return None
    start, end = bounds[axis]
    return None if start < 0 or end < start else (data, start, end)


@rule(op.Concat(x, ...))
def concat_of_split(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch:
    """Concat(Split(x)) -> x"""
    split = x.producer
    if split is None or split.op != "Split" or list(split.outputs) != node.operands:
        return NoMatch("the operands are not the parts of one Split, in order")
    data = split.inputs[0]
    if (
        data is None
        or axis_of(node) is None
        or split.attr("axis") % (data.rank or 1) != axis_of(node)
    ):
        return NoMatch("it joins another axis than was split")
    return data


@rule(op.Concat(op.Gather(x, ...).shared(), ...))
def concat_of_positions(rw: Rewriter, node: Node) -> Value | NoMatch:
    """Concat<axis=1>(s[0], s[1]) -> Reshape(Transpose(s)), if these are all positions of s"""
    found = Positions.of([*node.operands])
    if found is None or axis_of(node) != 1 or node.output.rank != 2:
        return NoMatch("its operands are not positions 0, 1, 2, … of one sequence")
    source = found.source
    if source.tensor.dims[found.axis] != found.steps:
        return NoMatch("the sequence has more positions")
    turned = source if found.axis == 1 else rw.op.Transpose(source, perm=[1, 0, 2])
    return reshaped(rw, turned, node.output.shape)


@rule(op.Concat(x, ...))
def parts_of_split_beside(rw: Rewriter, node: Node) -> Value | NoMatch | None:
    """Concat<axis=2>(a, b) of a, b = Split<axis=0>(x) -> Reshape(Transpose(x))

    As DeepCTR puts heads of attention side by side. Only inwards, where elements that lie together
    stay together: ONNX Runtime takes 0.6 of the time, and up to 3 times as long for the reverse.
    """
    found = restacked(node)
    if found is None:
        return None
    if found.perm.index(found.axis) <= found.axis:
        return NoMatch("its parts are joined along an axis before that which was split")
    if any(len(value.uses) > 1 for value in (*node.operands, *found.parts)):
        return NoMatch("its parts are also read elsewhere")
    apart = reshaped(rw, found.whole, found.apart)
    if isinstance(apart, NoMatch):
        return apart
    return reshaped(rw, rw.op.Transpose(apart, perm=found.perm), node.output.shape)


@rule(op.Concat(x, ...))
def concat_of_joined(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch | None:
    """Concat(a, b, c) -> Concat(Concat(a, b), c), if a and b are joined before it anyway"""
    axis, operands = axis_of(node), node.operands
    for other in x.users:
        joined = other.operands if other.op == "Concat" and other is not node else []
        if not 1 < len(joined) < len(operands) or axis_of(other) != axis:
            continue
        if joined == operands[: len(joined)] and _is_before(other, node):
            return rw.op.Concat(other.output, *operands[len(joined) :], axis=axis)
    return None


def _is_before(node: Node, other: Node) -> bool:
    """True if `node` comes before `other` in the same graph."""
    if node.graph is None or node.graph is not other.graph:
        return False
    return next(n for n in node.graph.nodes if n is node or n is other) is node


@rule(op.Reshape(op.Concat(x, ...).named("whole"), ...))
def flattened_stack(rw: Rewriter, whole: Value, node: Node) -> Value | NoMatch | None:
    """Reshape(Concat(Reshape(a), Reshape(b))) -> Concat(a, b), if it flattens what was stacked"""
    axis, result = axis_of(whole.producer), node.output.shape  # type: ignore[arg-type]
    if axis is None or whole.shape is None or result is None:
        return None
    if result != (*whole.shape[:axis], product(whole.shape[axis:])):
        return NoMatch("it does more than flattening the joined axis and those after it")
    flat: list[Value] = []
    for value in whole.producer.operands:  # type: ignore[union-attr]
        if value.producer is None or value.producer.op != "Reshape" or len(value.uses) > 1:
            return NoMatch("an operand is no reshape that can be undone")
        part = reshaped(rw, value, (*whole.shape[:axis], product(value.tensor.dims[axis:])))
        if isinstance(part, NoMatch):
            return part
        flat.append(part)
    return concat(rw, flat, axis)


@rule(op.Concat(x, ...))
def stacked_twin(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch | None:
    """Concat<axis=2>(a[N,1,D], b[N,1,D]) -> Reshape(Concat<axis=1>(a, b)), if that is there too"""
    axis, operands = axis_of(node), node.operands
    if not axis or axis + 1 != x.rank or {v.tensor.dims[-2] for v in operands} != {1}:
        return None
    joins = [n for n in x.users if n.op == "Concat" and n.operands == operands]
    if all(axis_of(other) != axis - 1 for other in joins):
        return NoMatch("its operands are not also stacked")
    if len({v.tensor.dims[-1] for v in operands}) > 1:
        return NoMatch("its operands differ in width")
    return reshaped(rw, rw.op.Concat(*operands, axis=axis - 1), node.output.shape)


@rule(op.Concat(x, ...))
def stack_to_reshape(rw: Rewriter, node: Node) -> Value | NoMatch | None:
    """Concat<axis=1>(Reshape(a, [N,1,D]), Reshape(b, [N,1,D])) -> Reshape(Concat<axis=1>(a, b))"""
    axis, stacked = axis_of(node), node.operands
    if not axis or len(stacked) < 2:
        return None
    rows = [_unstacked(value, axis) for value in stacked]
    known = [value for value in rows if value is not None]
    if len(known) < len(rows):
        return None
    if any(reader.op in ("Gather", "Slice", "Split") for reader in node.output.users):
        return NoMatch("parts of it are read, which may be those that it stacks")
    return reshaped(rw, rw.op.Concat(*known, axis=axis), node.output.shape)


def _unstacked(value: Value, axis: int) -> Value | None:
    """What `value` is with a new axis of size 1 at `axis`, which is not the last."""
    node = value.producer
    source = node.inputs[0] if node is not None and node.op == "Reshape" else None
    if source is None or value.shape is None or value.shape[axis] != 1:
        return None
    shape = value.shape[:axis] + value.shape[axis + 1 :]
    return source if source.shape == shape and axis < len(shape) else None


class SimplifyConcats(RewritePass):
    """Flattens concatenations, joins neighbouring slices in them, and undoes splits and stacks.

    Needs values that nobody else reads, unless nothing is computed for them alone. Rows are stacked
    by joining them first, so that lookups among them can become one. Fidelity: exact.

    Before:
        (float[N,9] x, float[N,3] z) => (float[N,8] y)
        <int64[1] a = {0}, int64[1] b = {2}, int64[1] c = {5}, int64[1] axis = {1}> {
            u = Slice(x, a, b, axis)
            v = Slice(x, b, c, axis)
            uv = Concat<axis=-1>(u, v)
            y = Concat<axis=1>(uv, z)
        }

    After:
        (float[N,9] x, float[N,3] z) => (float[N,8] y)
        <int64[1] a = {0}, int64[1] c = {5}, int64[1] axis = {1}> {
            uv = Slice(x, a, c, axis)
            y = Concat<axis=1>(uv, z)
        }
    """

    name = "simplify-concats"
    fidelity = Fidelity.EXACT
    rules = (
        concat_of_concat,
        concat_of_slices,
        concat_of_split,
        concat_of_positions,
        parts_of_split_beside,
        concat_of_joined,
        flattened_stack,
        stacked_twin,
        stack_to_reshape,
    )
