"""Takes the steps of recurrent layers apart, as frameworks write them out."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.passes._linear_terms import Terms, terms_of


class StepReader:
    """Goes from a step's result upwards, and notes the nodes seen on the way."""

    def __init__(self, new: Value) -> None:
        self.new = new
        self.nodes: set[Node] = set()

    def operands(self, value: Value | None, op: str) -> tuple[Value, Value] | None:
        """The two operands of `value`, if `op` computes it."""
        node = None if value is None else value.producer
        if node is None or node.op != op or len(node.inputs) != 2 or None in node.inputs:
            return None
        self.nodes.add(node)
        a, b = node.inputs
        assert a is not None and b is not None
        return a, b

    def argument(self, value: Value, op: str) -> Value | None:
        """The operand of `value`, if `op` computes it from one."""
        node = value.producer
        if node is None or node.op != op:
            return None
        self.nodes.add(node)
        return node.inputs[0]

    def terms(self, value: Value | None, width: int) -> Terms | None:
        """What `value`, of `width` columns, is a sum of."""
        if value is None or value.shape is None:
            return None
        terms = terms_of(value, width)
        self.nodes |= terms.nodes
        return terms


def is_zero(value: Value) -> bool:
    """True for a tensor full of zeros."""
    if value.const is not None:
        return not value.const.any()
    node = value.producer
    if node is None or node.op not in ("ConstantOfShape", "Expand"):
        return False
    if node.op == "Expand":
        return node.inputs[0] is not None and is_zero(node.inputs[0])
    fill = node.attr("value")
    return fill is None or not np.asarray(fill).any()


def computes(op: str, value: Value) -> bool:
    """True if `op` computes `value`."""
    return value.producer is not None and value.producer.op == op


def both_ways(pair: tuple[Value, Value] | None) -> list[tuple[Value, Value]]:
    """A pair as it is and turned round; nothing if there is none."""
    return [] if pair is None else [pair, pair[::-1]]


def same_state(a: Value, b: Value) -> bool:
    """True if both are one state; the first may be written as different zeros."""
    return a is b or (is_zero(a) and is_zero(b))
