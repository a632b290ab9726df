"""Concatenations, and slices and splits of them, with nothing superfluous."""

from __future__ import annotations

from itertools import accumulate

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.passes._shapes import INT64_MAX, slice_bounds
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

x, whole = var("x"), var("whole")


def _operands(node: Node) -> list[Value]:
    return [value for value in node.inputs if value is not None]


def _axis(node: Node) -> int | None:
    rank = node.output.rank
    return None if not rank else node.attr("axis") % rank


def _concat(rw: Rewriter, operands: list[Value], axis: int) -> Value:
    return operands[0] if len(operands) == 1 else rw.op.Concat(*operands, axis=axis)


@rule(op.Concat(x, ...))
def concat_of_concat(rw: Rewriter, node: Node) -> Value | NoMatch:
    """Concat(Concat(a, b), c) -> Concat(a, b, c), and empty operands dropped"""
    axis = _axis(node)
    if axis is None:
        return NoMatch("the rank is not known")
    flat: list[Value] = []
    for value in _operands(node):
        inner = value.producer
        alone = len(value.uses) == 1 and inner is not None and inner.graph is node.graph
        if alone and inner is not None and inner.op == "Concat" and _axis(inner) == axis:
            flat += _operands(inner)
        elif value.tensor.dims[axis] != 0:
            flat.append(value)
    if flat == _operands(node) or not flat:
        return NoMatch("no operand is a concatenation of its own or empty")
    return _concat(rw, flat, axis)


@rule(op.Concat(x, ...))
def concat_of_slices(rw: Rewriter, node: Node) -> Value | NoMatch:
    """Concat(x[:, 0:2], x[:, 2:5], z) -> Concat(x[:, 0:5], z)"""
    axis = _axis(node)
    if axis is None:
        return NoMatch("the rank is not known")
    merged: list[Value | tuple[Value, int, int]] = []
    for value in _operands(node):
        piece = _piece(value, axis)
        last = merged[-1] if merged else None
        if piece is not None and isinstance(last, tuple) and last[0] is piece[0] and last[2] == piece[1]:
            merged[-1] = (last[0], last[1], piece[2])
        else:
            merged.append(piece or value)
    if len(merged) == len(node.inputs):
        return NoMatch("no operands are neighbouring slices that nobody else reads")
    return _concat(rw, [_sliced(rw, entry, axis) for entry in merged], axis)


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


def _sliced(rw: Rewriter, entry: Value | tuple[Value, int, int], axis: int) -> Value:
    if isinstance(entry, Value):
        return entry
    value, start, end = entry
    if start == 0 and end in (INT64_MAX, value.tensor.dims[axis]):
        return value
    return rw.op.Slice(value, rw.ints(start), rw.ints(end), rw.ints(axis))


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
    bounds, axis = slice_bounds(node), _axis(whole.producer)
    if bounds is None or axis is None or set(bounds) != {axis}:
        return NoMatch("it does not slice the axis of the concatenation with constant bounds")
    operands, (start, end) = _operands(whole.producer), bounds[axis]
    borders = _borders([value.tensor.dims[axis] for value in operands])
    if start in borders and end in borders and start < end:
        return _concat(rw, operands[borders.index(start) : borders.index(end)], axis)
    for value, first, last in zip(operands, borders, borders[1:]):
        if first <= start < end <= last:
            return _sliced(rw, (value, start - first, end - first), axis)
    return NoMatch("it cuts through operands")


@rule(op.Split(op.Concat(x, ...).named("whole").shared(), ...))
def split_of_concat(rw: Rewriter, whole: Value, node: Node) -> list[Value] | NoMatch:
    """Split(Concat(a, b)) -> a, b"""
    assert whole.producer is not None
    operands, axis = _operands(whole.producer), _axis(whole.producer)
    if axis is None or node.attr("axis") % (whole.rank or 1) != axis:
        return NoMatch("it splits another axis")
    if [v.type for v in operands] != [v.type for v in node.outputs]:
        return NoMatch("it splits elsewhere")
    return operands


@rule(op.Concat(x, ...))
def concat_of_split(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch:
    """Concat(Split(x)) -> x"""
    split = x.producer
    if split is None or split.op != "Split" or list(split.outputs) != _operands(node):
        return NoMatch("the operands are not the parts of one Split, in order")
    data = split.inputs[0]
    if data is None or _axis(node) is None or split.attr("axis") % (data.rank or 1) != _axis(node):
        return NoMatch("it joins another axis than was split")
    return data


class SimplifyConcats(RewritePass):
    """Flattens concatenations and takes slices of their operands instead of the whole.

    Neighbouring slices of one value are joined before they are concatenated. Values that are read
    elsewhere too are not taken apart. Fidelity: exact.

    Before:
        (float[N,2] a, float[N,3] b, float[N,4] c) => (float[N,9] y, float[N,3] z)
        <int64[1] two = {2}, int64[1] five = {5}, int64[1] axis = {1}> {
            ab = Concat<axis=1>(a, b)
            abc = Concat<axis=-1>(a, b, c)
            y = Relu(abc)
            m = Slice(ab, two, five, axis)
            z = Relu(m)
        }

    After:
        (float[N,2] a, float[N,3] b, float[N,4] c) => (float[N,9] y, float[N,3] z) {
            abc = Concat<axis=-1>(a, b, c)
            y = Relu(abc)
            z = Relu(b)
        }
    """

    name = "simplify-concats"
    fidelity = Fidelity.EXACT
    rules = (concat_of_concat, concat_of_slices, concat_of_split, slice_of_concat, split_of_concat)
