"""What rules about concatenations share."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.passes._shapes import INT64_MAX
from graphopt.rewrite import Rewriter


def axis_of(node: Node) -> int | None:
    """The axis that a Concat joins, from the front; None if the rank is not known."""
    rank = node.output.rank
    return None if not rank else node.attr("axis") % rank


def concat(rw: Rewriter, operands: list[Value], axis: int) -> Value:
    """The operands joined; one alone as it is."""
    return operands[0] if len(operands) == 1 else rw.op.Concat(*operands, axis=axis)


def sliced(rw: Rewriter, entry: Value | tuple[Value, int, int], axis: int) -> Value:
    """A value, or the part of one between two positions of `axis`."""
    if isinstance(entry, Value):
        return entry
    value, start, end = entry
    if start == 0 and end in (INT64_MAX, value.tensor.dims[axis]):
        return value
    return rw.op.Slice(value, rw.ints(start), rw.ints(end), rw.ints(axis))


@dataclass(frozen=True)
class Restacked:
    """Equal parts of `whole`, joined along another axis than they were split along.

    Attributes:
        apart: the shape of `whole` with an axis for the parts, and without axes of size 1.
        axis: that for the parts.
        perm: how the axes are turned then.
        parts: the outputs of the split.
    """

    whole: Value
    apart: tuple[Dim, ...]
    axis: int
    perm: list[int]
    parts: list[Value]


def restacked(node: Node) -> Restacked | None:
    """What a Concat joins all parts of, in order; they may get or lose axes of size 1 before."""
    axis, operands = axis_of(node) if node.op == "Concat" else None, node.operands
    if axis is None:
        return None
    parts = [_less_ones(value) for value in operands]
    split, kind = parts[0].producer, parts[0].type
    if split is None or split.op != "Split" or list(split.outputs) != parts:
        return None
    if split.inputs[0] is None or any(part.type != kind for part in parts):
        return None
    dims = parts[0].tensor.dims
    along = split.attr("axis") % len(dims)
    before = [dim for dim in dims[:along] if dim != 1]
    after = [dim for dim in dims[along:] if dim != 1]
    apart = (*before, len(parts), *after)
    perm = [k for k in range(len(apart)) if k != len(before)]
    perm.insert(sum(d != 1 for d in operands[0].tensor.dims[:axis]), len(before))
    return Restacked(split.inputs[0], apart, len(before), perm, parts)


def _less_ones(value: Value) -> Value:
    """`value` before it got or lost axes of size 1."""
    node = value.producer
    source = node.inputs[0] if node is not None and node.op in ("Reshape", "Unsqueeze") else None
    if source is None or source.shape is None or value.shape is None:
        return value
    same = [d for d in source.shape if d != 1] == [d for d in value.shape if d != 1]
    return source if same else value
