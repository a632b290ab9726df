"""Slices, splits and gathers of a concatenation take from its operands."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.passes._concats import axis_of, concat, sliced
from graphopt.passes._shapes import ints_of, reshaped, slice_bounds
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, whole, index = var("x"), var("whole"), const("index")


def _borders(sizes: list[Dim]) -> list[int]:
    """Where operands begin, and where the last one ends, as far as the sizes are known."""
    known = []
    for size in sizes:
        if not isinstance(size, int):
            break
        known.append(size)
    return list(accumulate(known, initial=0))


@rule(op.Slice(op.Concat(x, ...).named("whole").shared(), ...))
def slice_of_concat(rw: Rewriter, whole: Value, node: Node) -> Value | NoMatch:
    """Slice(Concat(a, b, c)) -> Slice(b) or Concat(b, c), if it takes of one or takes whole ones"""
    assert whole.producer is not None
    bounds, axis = slice_bounds(node), axis_of(whole.producer)
    if bounds is None or axis is None or set(bounds) != {axis}:
        return NoMatch("it does not slice the axis of the concatenation with constant bounds")
    operands, (start, end) = whole.producer.operands, bounds[axis]
    borders = _borders([value.tensor.dims[axis] for value in operands])
    if start in borders and end in borders and start < end:
        return concat(rw, operands[borders.index(start) : borders.index(end)], axis)
    for value, first, last in zip(operands, borders, borders[1:]):
        if first <= start < end <= last:
            return sliced(rw, (value, start - first, end - first), axis)
    return NoMatch("it cuts through operands")


@rule(op.Split(op.Concat(x, ...).named("whole").shared(), ...))
def split_of_concat(rw: Rewriter, whole: Value, node: Node) -> list[Value] | NoMatch:
    """Split(Concat(a, b)) -> a, b"""
    assert whole.producer is not None
    operands, axis = whole.producer.operands, axis_of(whole.producer)
    if axis is None or node.attr("axis") % (whole.rank or 1) != axis:
        return NoMatch("it splits another axis")
    if [v.type for v in operands] != [v.type for v in node.outputs]:
        return NoMatch("it splits elsewhere")
    return operands


@rule(op.Gather(op.Concat(x, ...).named("whole").shared(), index))
def gather_of_concat(rw: Rewriter, whole: Value, index: Value, node: Node) -> Value | NoMatch:
    """Gather(Concat(a, b), k) -> Gather(b, k - len(a))"""
    assert whole.producer is not None
    axis, position = axis_of(whole.producer), ints_of(index)
    if axis is None or position is None or index.rank != 0:
        return NoMatch("it does not take one position")
    if node.attr("axis") % (whole.rank or 1) != axis:
        return NoMatch("it takes from another axis")
    operands = whole.producer.operands
    borders = _borders([value.tensor.dims[axis] for value in operands])
    size = whole.tensor.dims[axis]
    wanted = position[0] + size if position[0] < 0 and isinstance(size, int) else position[0]
    for value, first, last in zip(operands, borders, borders[1:]):
        if not first <= wanted < last:
            continue
        if last - first > 1:
            return rw.op.Gather(value, rw.const(np.array(wanted - first, np.int64)), axis=axis)
        return reshaped(rw, value, node.output.shape)
    return NoMatch("it takes from an operand after one of unknown size")


class BypassConcats(RewritePass):
    """Takes parts of a concatenation from its operands, so that it need not be computed for them.

    Needs a part that lies within one operand or covers whole ones. Fidelity: exact.

    Before:
        (float[N,2] a, float[N,3] b) => (float[N,5] y, float[N,3] z)
        <int64[1] two = {2}, int64[1] five = {5}, int64[1] axis = {1}> {
            y = Concat<axis=1>(a, b)
            m = Slice(y, two, five, axis)
            z = Relu(m)
        }

    After:
        (float[N,2] a, float[N,3] b) => (float[N,5] y, float[N,3] z) {
            y = Concat<axis=1>(a, b)
            z = Relu(b)
        }
    """

    name = "bypass-concats"
    fidelity = Fidelity.EXACT
    rules = (slice_of_concat, split_of_concat, gather_of_concat)
