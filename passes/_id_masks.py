"""Masks that tell which ids are not padding, and the counts of these."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.passes._shapes import ints_of, without_ones

_INTEGERS = ("int32", "int64")
# What comes of `ids` and a number: padding less that number, whether it holds for padding, and
# whether ids below padding are padding too.
_COMPARISONS = {
    "Equal": (0, True, False),
    "Greater": (0, False, True),
    "GreaterOrEqual": (-1, False, True),
    "Less": (-1, True, True),
    "LessOrEqual": (0, True, True),
}
_REVERSED = {
    "Greater": "Less",
    "GreaterOrEqual": "LessOrEqual",
    "Less": "Greater",
    "LessOrEqual": "GreaterOrEqual",
}


@dataclass(frozen=True)
class Mask:
    """One number per id: 1 (or true) where `ids` is not `padding`; 0 there if it is `turned`.

    Attributes:
        below: smaller ids are padding as well.
    """

    ids: Value
    padding: int
    turned: bool = False
    below: bool = False


def mask_of(value: Value, dims: tuple[Dim, ...]) -> Mask | None:
    """What `value`, in the order of ids [n, k] of the sizes `dims`, says of them."""
    turned = False
    if value.shape is None or without_ones(value.shape) != without_ones(dims):
        return None
    while (node := value.producer) is not None and node.op in ("Cast", "Not", "Reshape"):
        before = node.inputs[0]
        if before is None or (node.op == "Cast" and before.dtype != "bool"):
            return None
        turned ^= node.op == "Not"
        value = before
    if node is None or node.op not in _COMPARISONS:
        return None
    reversed_op = _REVERSED.get(node.op, node.op)
    for op, (ids, bound) in ((node.op, node.inputs), (reversed_op, node.inputs[::-1])):
        if ids is not None and bound is not None and bound.const is not None:
            plain, (shift, at_padding, below) = plain_ids(ids), _COMPARISONS[op]
            if bound.const.size == 1 and plain.dtype in _INTEGERS and ids.dtype in _INTEGERS:
                padding = int(bound.const.item()) + shift
                return Mask(plain, padding, at_padding != turned, below)
    return None


def plain_ids(ids: Value) -> Value:
    """`ids` before they were reshaped or cast to a dtype that holds all of them."""
    while (node := ids.producer) is not None and node.op in ("Cast", "Reshape"):
        before = node.inputs[0]
        if before is None or before.dtype not in _INTEGERS:
            break
        if before.dtype == "int64" and ids.dtype != "int64":
            break
        ids = before
    return ids


def sum_along(value: Value | None, axis: int) -> Value | None:
    """What `value` is the sum along `axis`, counted from the front, of; None if it is none."""
    return _reduced(value, axis, "ReduceSum")


def mean_along(value: Value, axis: int) -> Value | None:
    """What `value` is the mean along `axis`, counted from the front, of; None if it is none."""
    return _reduced(value, axis, "ReduceMean")


def count_of(value: Value) -> Value | None:
    """What `value`, of whole numbers that are cast to floats or of floats, counts in each row.

    Rows lie along the last axis that is not of size 1.
    """
    node = value.producer
    counted = node.inputs[0] if node is not None and node.op == "Cast" else value
    marks = None if counted is None or counted.producer is None else counted.producer.inputs[0]
    if marks is None or not marks.rank:
        return None
    axis = max((k for k, size in enumerate(marks.tensor.dims) if size != 1), default=0)
    return sum_along(counted, axis)


def _reduced(value: Value | None, axis: int, op_type: str) -> Value | None:
    node = None if value is None else value.producer
    if node is None or node.op != op_type:
        return None
    data, axes = node.inputs[0], ints_of(node.input(1))
    if data is None or data.rank is None or axes is None or len(axes) != 1:
        return None
    return data if axes[0] % data.rank == axis else None


def divisor_of(value: Value | None) -> tuple[Value, float] | None:
    """(count, what 0 / divisor is for a count of 0) of a divisor that is `count` if that is not 0.

    So `count` itself, `Max(count, 1)`, and `count + tiny`, which rounds to `count` from 1 on.
    """
    node = None if value is None else value.producer
    if node is not None and node.op == "Cast" and node.inputs[0] is not None:
        whole = node.inputs[0].dtype in _INTEGERS
        found = divisor_of(node.inputs[0]) if whole else None
        if found is not None and found[0] is not node.inputs[0]:
            return found
    if value is None or node is None or node.op not in ("Add", "Clip", "Max"):
        return None if value is None else (value, math.nan)
    if node.op == "Clip":
        low, high = node.const(1), node.input(2)
        floored = low is not None and low.size == 1 and low.item() == 1 and high is None
        return (node.inputs[0], 0.0) if floored and node.inputs[0] is not None else None
    for count, least in _pairs(node):
        if least.const is not None and least.const.size == 1 and count.type == value.type:
            number = least.const.reshape(())
            one = np.ones((), number.dtype)
            fits = number == one if node.op == "Max" else number > 0 and one + number == one
            return (count, 0.0) if fits else None
    return None


def _pairs(node: Node) -> list[tuple[Value, Value]]:
    if len(node.inputs) != 2 or node.inputs[0] is None or node.inputs[1] is None:
        return []
    a, b = node.inputs
    return [(a, b), (b, a)]  # type: ignore[list-item]
