"""Between which numbers the elements of a value lie, column by column, whatever the inputs are.

The bounds of a column (an index of the last axis) follow from constants: from the rows of a table
whichever of them is read, from activations, and through layers by interval arithmetic (Moore,
"Interval analysis", 1966). They hold for finite inputs, and allow for the rounding of float32 in
any order of additions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.ir.types import TensorType, is_float

MAX_BYTES = 1 << 26  # of a constant that is looked through; larger tables are not read for this
_DEPTH = 200  # ops back; what lies further is not known
_ROUNDING = 2.0**-23


class Interval(NamedTuple):
    """Bounds `low` and `high`, float64: [columns], or of shape () for all columns."""

    low: np.ndarray
    high: np.ndarray

    @property
    def is_constant(self) -> np.ndarray:
        """Which columns hold one number only."""
        return np.asarray(self.low == self.high)

    @property
    def hull(self) -> Interval:
        """Bounds of all columns together."""
        return Interval(self.low.min(initial=math.inf), self.high.max(initial=-math.inf))


UNKNOWN = Interval(np.array(-math.inf), np.array(math.inf))


class Intervals:
    """The bounds of values of a graph, found when asked for."""

    def __init__(self) -> None:
        self._known: dict[Value, Interval] = {}

    def of(self, value: Value | None, depth: int = 0) -> Interval:
        """The bounds of the columns of `value`; [columns] if their number is known."""
        if value is None or not isinstance(value.type, TensorType) or not is_float(value.dtype):
            return UNKNOWN
        if value not in self._known:
            found = UNKNOWN if depth > _DEPTH else self._find(value, depth + 1)
            columns = value.tensor.dims[-1] if value.rank else None
            shaped = Interval(*map(np.asarray, found))
            if shaped.low.ndim and shaped.low.shape != (columns,):
                shaped = shaped.hull
            if isinstance(columns, int):
                shaped = Interval(*(np.broadcast_to(side, (columns,)) for side in shaped))
            self._known[value] = shaped
        return self._known[value]

    def _find(self, value: Value, depth: int) -> Interval:
        node = value.producer
        if value.const is not None:
            return _of_constant(value.const)
        if node is None or len(node.outputs) > 1:
            return UNKNOWN
        if node.op == "Gather" and node.const(0) is not None and node.attr("axis") == 0:
            return _of_constant(node.const(0))
        if node.op in _MONOTONE:
            low, high = self.of(node.inputs[0], depth)
            return _MONOTONE[node.op](node, low, high)
        rule = _RULES.get(node.op)
        return UNKNOWN if rule is None else rule(node, lambda k: self.of(node.input(k), depth))


Operand = Callable[[int], Interval]


def _of_constant(array: np.ndarray | None) -> Interval:
    if array is None or not array.size or array.nbytes > MAX_BYTES or not np.isfinite(array).all():
        return UNKNOWN
    rows = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
    return Interval(rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64))


def _clip(node: Node, low: np.ndarray, high: np.ndarray) -> Interval:
    least, most = node.const(1), node.const(2)
    if any(node.input(k) is not None and node.const(k) is None for k in (1, 2)):
        return UNKNOWN
    floor = -math.inf if least is None else float(least)
    ceiling = math.inf if most is None else float(most)
    return Interval(np.clip(low, floor, ceiling), np.clip(high, floor, ceiling))


def _leaky(node: Node, low: np.ndarray, high: np.ndarray) -> Interval:
    slope = node.attr("alpha", 0.01)
    if slope < 0:
        return UNKNOWN
    low, high = (np.where(side < 0, slope * side, side) if slope else side for side in (low, high))
    return Interval(low, high)


_MONOTONE: dict[str, Callable[[Node, np.ndarray, np.ndarray], Interval]] = {
    "Identity": lambda node, low, high: Interval(low, high),
    "Dropout": lambda node, low, high: Interval(low, high),
    "Relu": lambda node, low, high: Interval(np.maximum(low, 0.0), np.maximum(high, 0.0)),
    "LeakyRelu": _leaky,
    "Clip": _clip,
    "Sigmoid": lambda node, low, high: Interval(np.zeros(()), np.ones(())),
    "HardSigmoid": lambda node, low, high: Interval(np.zeros(()), np.ones(())),
    "Softmax": lambda node, low, high: Interval(np.zeros(()), np.ones(())),
    "Tanh": lambda node, low, high: Interval(-np.ones(()), np.ones(())),
}


def _sum(node: Node, operand: Operand) -> Interval:
    a, b = operand(0), operand(1)
    if node.op == "Sub":
        b = Interval(-b.high, -b.low)
    low, high = a.low + b.low, a.high + b.high
    slack = _ROUNDING * np.maximum(np.abs(low), np.abs(high))
    exact = a.is_constant & b.is_constant
    return Interval(np.where(exact, low, low - slack), np.where(exact, high, high + slack))


def _product(node: Node, operand: Operand) -> Interval:
    a, b = operand(0), operand(1)
    corners = np.stack([_times(x, y) for x in a for y in b])
    slack = _ROUNDING * np.abs(corners).max(axis=0)
    exact = a.is_constant & b.is_constant
    low, high = corners.min(axis=0), corners.max(axis=0)
    return Interval(np.where(exact, low, low - slack), np.where(exact, high, high + slack))


def _times(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x * y, where 0 times anything is 0."""
    with np.errstate(invalid="ignore"):
        return np.where((x == 0) | (y == 0), 0.0, x * y)


def _layer(node: Node, operand: Operand) -> Interval:
    """Of a Gemm or MatMul with a constant matrix."""
    weight = node.const(1)
    if weight is None or weight.ndim != 2 or node.attr("transA", 0) or weight.nbytes > MAX_BYTES:
        return UNKNOWN
    rows = (weight.T if node.attr("transB", 0) else weight).astype(np.float64)
    rows = rows * node.attr("alpha", 1.0)
    data = operand(0)
    low, high = (np.broadcast_to(side, len(rows))[:, None] for side in data)
    ends = np.stack([_times(low, rows), _times(high, rows)])
    bias = Interval(np.zeros(()), np.zeros(()))
    if node.op == "Gemm" and node.input(2) is not None:
        beta = node.attr("beta", 1.0)
        sides = [_times(side, np.asarray(beta)) for side in operand(2)]
        bias = Interval(np.minimum(*sides), np.maximum(*sides))
    least = ends.min(axis=0).sum(axis=0) + bias.low
    most = ends.max(axis=0).sum(axis=0) + bias.high
    reach = np.abs(ends).max(axis=0).sum(axis=0) + np.maximum(abs(bias.low), abs(bias.high))
    slack = np.where(least == most, 0.0, (len(rows) + 2) * _ROUNDING * reach)
    return Interval(least - slack, most + slack)


def _concat(node: Node, operand: Operand) -> Interval:
    parts = [operand(k) for k in range(len(node.inputs))]
    if node.output.rank is None or any(not part.low.ndim for part in parts):  # of unknown width
        hulls = [part.hull for part in parts]
        return Interval(np.min([p.low for p in hulls]), np.max([p.high for p in hulls]))
    if node.attr("axis") not in (-1, node.output.rank - 1):
        return Interval(
            np.minimum.reduce([p.low for p in parts]), np.maximum.reduce([p.high for p in parts])
        )
    return Interval(*(np.concatenate(sides) for sides in zip(*parts)))


def _reshape(node: Node, operand: Operand) -> Interval:
    """Columns stay columns, or come one block after another."""
    data, old = node.inputs[0], operand(0)
    before = data.tensor.dims[-1] if data is not None and data.rank else None
    after = node.output.tensor.dims[-1] if node.output.rank else None
    if isinstance(before, int) and isinstance(after, int) and before and after % before == 0:
        return Interval(*(np.tile(side, after // before) for side in old))
    return old.hull


_RULES: dict[str, Callable[[Node, Operand], Interval]] = {
    "Add": _sum,
    "Sub": _sum,
    "Mul": _product,
    "Gemm": _layer,
    "MatMul": _layer,
    "Concat": _concat,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(
        ("Expand", "Gather", "Slice", "Transpose"), lambda node, operand: operand(0).hull
    ),
}
