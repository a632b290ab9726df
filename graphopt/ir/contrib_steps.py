"""Nodes that stand for one call of an op of ONNX Runtime's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt.ir.graph import Graph, Value
from graphopt.ir.types import TensorType, dtype_to_numpy, dtype_to_onnx
from graphopt.ir.upgrade import OpCall


class Steps:
    """Inserts the nodes that stand for a call; the result of one is its first output."""

    def __init__(self, graph: Graph, call: OpCall) -> None:
        self.graph, self.call = graph, call

    def __call__(self, op_type: str, *inputs: Value | None, **attrs: Any) -> Value:
        return self.graph.insert(op_type, inputs, attrs, origin=self.call.origin).outputs[0]

    def input(self, slot: int) -> Value | None:
        """An operand, None where it is left out."""
        return self.call.inputs[slot] if slot < len(self.call.inputs) else None

    def value(self, slot: int) -> Value:
        """An operand that must be there, a tensor."""
        value = self.input(slot)
        if value is None or not isinstance(value.type, TensorType):
            raise self.call.invalid(f"input {slot} must be a tensor")
        return value

    def number(self, number: float, like: Value) -> Value:
        """A constant of the dtype of `like`."""
        return self.graph.constant(np.array(number, dtype_to_numpy(like.dtype)))

    def floats(self, slot: int, axis: int = -1) -> Value:
        """The codes of input `slot` as floats; the scale and zero point are the inputs after it."""
        codes, rank = self.value(slot), self.value(slot).rank
        per_slice = self.value(slot + 1).rank == 1 and rank
        attrs = {"axis": axis % rank} if per_slice and rank else {}
        return self("DequantizeLinear", codes, self.value(slot + 1), self.input(slot + 2), **attrs)

    def product(
        self, factors: Sequence[Value | None], scale: Value | None, bias: Value | None
    ) -> Value:
        """Codes multiplied, times a scale, plus a bias.

        Args:
            factors: two matrices of codes, and the zero points of both.
        """
        factors = list(factors)
        while factors[-1] is None:
            factors.pop()
        sums = self("Cast", self("MatMulInteger", *factors), to=dtype_to_onnx("float32"))
        scaled = self("Mul", sums, scale)
        return scaled if bias is None else self("Add", scaled, bias)

    def codes(self, floats: Value, slot: int) -> Value:
        """`floats` as codes by the scale and zero point at input `slot`."""
        return self("QuantizeLinear", floats, self.value(slot), self.input(slot + 1))


Adapter = Callable[[Steps, dict[str, Any]], "Value | Sequence[Value]"]
