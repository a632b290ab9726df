"""Codes that stand for zero, where a lookup finds no row: `--oob zero` promises zeros, not codes 0.

What reads codes says which of them stands for zero. Lookups are told, in a note `_fill`, which
lowerings use for ids out of range; other policies need no such row.
"""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import TensorType

LOOKUPS = frozenset(["Gather", "GatherElements", "GatherND"])
_MOVES = frozenset(
    ["Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose"]
    + ["Unsqueeze", *LOOKUPS]
)
# Which inputs are codes, and which say what of these stands for zero.
_ZEROS = {
    "ConvInteger": ((0, 2), (1, 3)),
    "DequantizeLinear": ((0, 2),),
    "MatMulInteger": ((0, 2), (1, 3)),
    "QLinearConv": ((0, 2), (3, 5)),
    "QLinearMatMul": ((0, 2), (3, 5)),
}


def tell_lookups(graph: Graph) -> None:
    """Set `_fill` of all lookups of codes, of as many dimensions as their result or a scalar.

    Where readers of one lookup disagree, each gets its own. Not told are lookups whose codes are
    only moved, out of the graph or into other arithmetic: their rows are codes 0. Nor are those
    whose columns have different zero points and are moved before they are read.
    """
    for node in list(graph.walk()):
        for codes, zero in _ZEROS.get(node.op, ()):
            value, fill = node.inputs[codes], _zero(node, codes, zero)
            if value is not None and fill is not None and isinstance(value.type, TensorType):
                told = _told(value, fill, node)
                if told is not value:
                    assert node.graph is not None
                    node.graph.set_input(node, codes, told)


def _zero(node: Node, codes: int, index: int) -> np.ndarray | None:
    """The zero point of an input: a scalar, or what broadcasts to it; None if it is not known."""
    value, zero = node.inputs[codes], node.const(index)
    if node.input(index) is None:
        return np.zeros((), np.int64)
    if zero is None or not zero.size or value is None:
        return None
    zero = zero.astype(np.int64)
    if (zero == zero.flat[0]).all():
        return np.array(zero.flat[0])
    if node.op != "DequantizeLinear" or zero.ndim != 1 or value.rank is None:
        return None
    axis = node.attr("axis") % value.rank
    return zero.reshape(-1, *[1] * (value.rank - axis - 1))


def _told(value: Value, fill: np.ndarray, reader: Node) -> Value:
    """`value` with `fill` in the rows that its lookups do not find, for `reader`."""
    node = value.producer
    if node is None or node.op not in _MOVES:
        return value
    inputs, other = list(node.inputs), False
    if not fill.ndim:
        for k in range(len(inputs) if node.op == "Concat" else 1):
            moved = inputs[k]
            assert moved is not None
            inputs[k] = _told(moved, fill, reader)
            other |= inputs[k] is not moved
    attrs = dict(node.attrs)
    if node.op == "Gather" or (node.op in LOOKUPS and not fill.ndim):
        other |= "_fill" in attrs and not np.array_equal(attrs["_fill"], fill)
        attrs["_fill"] = fill
        if not other:
            node.attrs["_fill"] = fill
    if not other:
        return value
    assert reader.graph is not None
    copy = reader.graph.insert(
        node.op_type, inputs, attrs, domain=node.domain, before=reader, origin=node.origin
    )
    return copy.output
