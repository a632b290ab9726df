"""Two layers with units between them that nobody else sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.passes._layer_columns import (
    elementwise_input,
    on_columns,
    with_inputs,
    with_outputs,
)
from graphopt.passes._linear import is_per_column, matrix_of, weight_of


@dataclass(frozen=True)
class HiddenLayer:
    """A Gemm or MatMul, ops on single units, and the Gemm or MatMul that reads the units.

    Attributes:
        first: makes the units; its weight and bias are constants.
        between: activations, and additions and multiplications of constants, in order.
        second: reads the units.
    """

    first: Node
    between: tuple[Node, ...]
    second: Node

    @staticmethod
    def before(second: Node) -> HiddenLayer | str | None:
        """The hidden layer that `second` reads; None if it reads none, or why it must stay."""
        if weight_of(second) is None or not is_per_column(second.input(2)):
            return None
        between: list[Node] = []
        value = second.inputs[0]
        while value is not None and value.producer is not None:
            node = value.producer
            if weight_of(node) is not None:
                if not between:
                    return None
                if any(
                    len(n.output.uses) > 1 or n.output.is_graph_output for n in (node, *between)
                ):
                    return "its units are also read elsewhere"
                if not is_per_column(node.input(2)):
                    return None
                return HiddenLayer(node, tuple(reversed(between)), second)
            index = elementwise_input(node)
            if index is None:
                return None
            between.append(node)
            value = node.inputs[index]
        return None

    @property
    def hidden(self) -> Value:
        """The units, as the second layer reads them."""
        return self.between[-1].output

    @property
    def units(self) -> int:
        return len(self.outgoing)

    @property
    def outgoing(self) -> np.ndarray:
        """The second layer's weight [units, outputs]."""
        return matrix_of(self.second)

    @property
    def bytes_of_unit(self) -> int:
        """Bytes of weights, without biases, that one unit takes."""
        return (len(matrix_of(self.first)) + self.outgoing.shape[1]) * self.outgoing.itemsize

    def replace(
        self, kept: np.ndarray, mixing: np.ndarray, offset: np.ndarray
    ) -> tuple[Value, Value]:
        """Keep some units only, where the units are about kept @ `mixing` + `offset`.

        Returns:
            what the two layers, without a shift of the second's outputs, give now.
        """
        first = value = with_outputs(self.first, self.second, kept)
        for node in self.between:
            value = on_columns(node, self.second, value, kept)
        return first, with_inputs(self.second, value, mixing, offset)
