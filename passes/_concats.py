"""What rules about concatenations share."""

from __future__ import annotations

from graphopt.ir.graph import Node, Value
from graphopt.passes._shapes import INT64_MAX
from graphopt.rewrite import Rewriter


def operands_of(node: Node) -> list[Value]:
    """The values that `node` joins."""
    return [value for value in node.inputs if value is not None]


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
