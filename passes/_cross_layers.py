"""Cross layers with weight vectors as exporters write them, found from their last addition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.passes._linear import turned


@dataclass(frozen=True)
class CrossLayer:
    """x0 * (x . w + offset) + b + x.

    `inner` compute it, `around` only reshape x and x0 for them.
    """

    x0: Value
    x: Value
    w: np.ndarray
    offset: float
    b: np.ndarray
    inner: set[Node]
    around: set[Node]


def _bare(value: Value) -> tuple[Value, set[Node]]:
    """`value` before reshapes that only add or drop axes of size 1, and these."""
    passed: set[Node] = set()
    while (node := value.producer) is not None and node.op == "Reshape":
        source = node.inputs[0]
        assert source is not None
        sizes = [[d for d in v.tensor.dims if d != 1] for v in (source, value)]
        if sizes[0] != sizes[1]:
            break
        passed.add(node)
        value = source
    return value, passed


def _terms(value: Value, root: bool = True) -> Iterator[tuple[Value, set[Node]]]:
    """What is added up to `value`, as far as sums have no other reader, and the sums passed."""
    node = value.producer
    if node is None or node.op != "Add" or not (root or len(value.uses) == 1):
        yield value, set()
        return
    for operand in node.inputs:
        assert operand is not None
        yield from ((term, passed | {node}) for term, passed in _terms(operand, root=False))


def _weights(node: Node) -> tuple[np.ndarray, float] | None:
    """The vector and the number of a MatMul or Gemm with one column."""
    matrix, bias = node.const(1), node.const(2)
    plain = not node.attr("transA", 0) and node.attr("alpha", 1.0) == node.attr("beta", 1.0) == 1.0
    if matrix is None or matrix.ndim != 2 or not plain or (bias is None) != (len(node.inputs) < 3):
        return None
    columns = turned(node, matrix)
    if columns.shape[1] != 1 or (bias is not None and bias.size != 1):
        return None
    return columns[:, 0], 0.0 if bias is None else float(bias.item())


def _row(biases: list[np.ndarray], result: Value, width: int) -> np.ndarray | None:
    """The sum of constants that are added to each row of `result`; None if rows differ."""
    shape = result.tensor.dims
    along = next((k for k, d in enumerate(shape) if k and d != 1), 1)
    total = np.zeros(width)
    for bias in biases:
        padded = (1,) * (len(shape) - bias.ndim) + bias.shape
        if any(size != 1 and axis != along for axis, size in enumerate(padded)):
            return None
        total = total + bias.reshape(-1)
    return total


def _scales_rows(x0: Value, dot: Value) -> bool:
    """True if `dot` has one number where `x0`, whose first axis counts rows, has a row of them."""
    shape, wanted = dot.tensor.dims, x0.tensor.dims
    rest = set(shape[1:])
    return len(shape) == len(wanted) and shape[0] == wanted[0] and rest == {1}


def cross_layer(result: Value) -> CrossLayer | None:
    """The cross layer that ends with `result`, if one does."""
    terms = list(_terms(result))
    sums = set[Node]().union(*(passed for _, passed in terms))
    biases = [term.const for term, _ in terms if term.const is not None]
    rest = [term for term, _ in terms if term.const is None]
    if len(rest) != 2 or any(term.shape != result.shape for term in rest):
        return None
    for product, x in permutations(rest):
        multiplied, outside = _bare(product)
        x, around = _bare(x)
        node = multiplied.producer
        if node is None or node.op not in ("Mul", "MatMul") or x.rank != 2:
            continue
        for first, second in permutations(value for value in node.inputs if value is not None):
            x0, also = _bare(first)
            dot, between = _bare(second)
            layer, found = dot.producer, None
            if layer is not None and layer.op in ("MatMul", "Gemm") and x0.type == x.type:
                found = _weights(layer)
            if layer is None or found is None or not _scales_rows(first, second):
                continue
            read, before = _bare(layer.operands[0])
            b = _row(biases, result, len(found[0]))
            if read is x and b is not None:
                inner = sums | outside | {node} | between | {layer}
                return CrossLayer(x0, x, *found, b, inner, around | also | before)
    return None
