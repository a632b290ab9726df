"""Sums of products with constant matrices, collected term by term."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.passes._linear import turned
from graphopt.passes._shapes import slice_bounds


@dataclass
class Terms:
    """`sum(value @ weight) + bias + sum(others)`, float32 with `width` columns.

    Attributes:
        weights: [inputs, width] by the value that is multiplied.
        bias: [width].
        others: summands that are no such product.
        nodes: what computes the sum from all these.
    """

    width: int
    bias: np.ndarray
    weights: dict[Value, np.ndarray] = field(default_factory=dict)
    others: list[Value] = field(default_factory=list)
    nodes: set[Node] = field(default_factory=set)

    def plus(self, other: Terms) -> Terms:
        """The sum of both."""
        weights = dict(self.weights)
        for value, weight in other.weights.items():
            weights[value] = weights[value] + weight if value in weights else weight
        nodes = self.nodes | other.nodes
        bias = self.bias + other.bias
        return Terms(self.width, bias, weights, self.others + other.others, nodes)

    def negated(self) -> Terms:
        """Minus the sum; there must be no others."""
        weights = {value: -weight for value, weight in self.weights.items()}
        return Terms(self.width, -self.bias, weights, [], self.nodes)

    def columns(self, start: int, end: int) -> Terms:
        """Some columns of it; there must be no others."""
        weights = {value: weight[:, start:end] for value, weight in self.weights.items()}
        return Terms(end - start, self.bias[start:end], weights, [], set(self.nodes))


def terms_of(value: Value, width: int) -> Terms:
    """`value`, float32[..., width], as a sum; itself the only summand where it is none."""
    if value.const is not None:
        return _constant(value, width)
    node = value.producer
    rule = _RULES.get(node.op) if node is not None else None
    found = rule(node, value, width) if rule is not None and node is not None else None
    if found is None:
        return Terms(width, np.zeros(width, np.float32), others=[value])
    if node is not None:
        found.nodes.add(node)
    return found


def _constant(value: Value, width: int) -> Terms:
    array = value.const
    assert array is not None
    if array.size != 1 and (array.size != width or array.shape[-1] != width):
        return Terms(width, np.zeros(width, np.float32), others=[value])
    return Terms(width, np.broadcast_to(array.reshape(-1), width).astype(np.float32))


def _add(node: Node, value: Value, width: int) -> Terms | None:
    a, b = node.inputs
    assert a is not None and b is not None
    if any(v.const is None and v.shape != value.shape for v in (a, b)):
        return None
    return terms_of(a, width).plus(terms_of(b, width))


def _matmul(node: Node, value: Value, width: int) -> Terms | None:
    data, weight = node.inputs[0], node.const(1)
    if data is None or weight is None or weight.ndim != 2:
        return None
    return Terms(width, np.zeros(width, np.float32), {data: weight})


def _gemm(node: Node, value: Value, width: int) -> Terms | None:
    data, weight, bias = node.inputs[0], node.const(1), node.input(2)
    if data is None or weight is None or node.attr("transA"):
        return None
    if node.attr("alpha") != 1.0 or node.attr("beta") != 1.0:
        return None
    product = Terms(width, np.zeros(width, np.float32), {data: turned(node, weight)})
    return product if bias is None else product.plus(terms_of(bias, width))


def _split(node: Node, value: Value, width: int) -> Terms | None:
    whole = node.inputs[0]
    if whole is None or not whole.rank:
        return None
    sizes = [output.tensor.dims[-1] for output in node.outputs]
    total = whole.tensor.dims[-1]
    if node.attr("axis") % len(whole.tensor.dims) != len(whole.tensor.dims) - 1:
        return None
    if not isinstance(total, int) or not all(isinstance(size, int) for size in sizes):
        return None
    start = sum(size for size in sizes[: node.outputs.index(value)] if isinstance(size, int))
    return _part(whole, total, start, start + width)


def _slice(node: Node, value: Value, width: int) -> Terms | None:
    whole, bounds = node.inputs[0], slice_bounds(node)
    if whole is None or not whole.rank:
        return None
    last = len(whole.tensor.dims) - 1
    total = whole.tensor.dims[last]
    if bounds is None or set(bounds) != {last} or not isinstance(total, int):
        return None
    return _part(whole, total, *bounds[last])


def _part(whole: Value, total: int, start: int, end: int) -> Terms | None:
    terms = terms_of(whole, total)
    return None if terms.others else terms.columns(start, end)


_RULES: dict[str, Callable[[Node, Value, int], Terms | None]] = {
    "Add": _add,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Slice": _slice,
    "Split": _split,
}
