"""Two layers with units between them that nobody else sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.passes._inline import replace

_UNARY = frozenset(["Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Softplus", "HardSigmoid"])
_BINARY = frozenset(["Add", "Mul"])


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
        if _weight(second) is None or (second.op == "Gemm" and not _has_plain_bias(second)):
            return None
        between: list[Node] = []
        value = second.inputs[0]
        while value is not None and value.producer is not None:
            node = value.producer
            if _weight(node) is not None:
                if not between:
                    return None
                if any(
                    len(n.output.uses) > 1 or n.output.is_graph_output for n in (node, *between)
                ):
                    return "its units are also read elsewhere"
                if node.op == "Gemm" and not _has_plain_bias(node):
                    return None
                return HiddenLayer(node, tuple(reversed(between)), second)
            constant = _constant_input(node)
            if node.op not in _UNARY and (node.op not in _BINARY or constant is None):
                return None
            if constant is not None and not _is_per_unit(node, constant):
                return None
            between.append(node)
            value = node.inputs[0 if constant is None else 1 - constant]
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
        matrix = np.ascontiguousarray(matrix_of(self.first)[:, kept])
        bias = self.first.const(2)
        if bias is not None and bias.size > 1:
            bias = np.ascontiguousarray(bias[..., kept])
        first = value = _rebuilt(self.first, self.second, self.first.inputs[0], matrix, bias)
        for node in self.between:
            value = _on_units(node, self.second, value, kept)
        outgoing = self.outgoing.astype(np.float64)
        weight = (mixing @ outgoing).astype(np.float32)
        return first, self._replace_second(value, weight, offset @ outgoing)

    def _replace_second(self, hidden: Value, weight: np.ndarray, shift: np.ndarray) -> Value:
        second, graph = self.second, self.second.graph
        assert graph is not None
        if second.op == "Gemm":
            old = second.const(2)
            moved = second.attr("alpha") * shift
            if old is not None and second.attr("beta"):
                moved = moved / second.attr("beta") + old.reshape(-1)
            product = result = _rebuilt(second, second, hidden, weight, moved.astype(np.float32))
        else:
            product = _rebuilt(second, second, hidden, weight, None)
            constant = graph.constant(shift.astype(np.float32))
            added = graph.insert("Add", [product, constant], before=second, origin=second.origin)
            result = added.output
        replace(second, [result])
        return product


def _weight(node: Node) -> np.ndarray | None:
    """The constant matrix of a Gemm or MatMul."""
    weight = node.const(1)
    if node.op not in ("Gemm", "MatMul") or weight is None or weight.ndim != 2:
        return None
    return None if weight.dtype != np.float32 or node.attr("transA", 0) else weight


def _has_plain_bias(gemm: Node) -> bool:
    """True if the bias is absent, or a constant row."""
    bias = gemm.input(2)
    return bias is None or (bias.const is not None and bias.const.shape[:-1] in ((), (1,)))


def matrix_of(node: Node) -> np.ndarray:
    """The constant weight of a Gemm or MatMul as [inputs, outputs]."""
    weight = node.const(1)
    assert weight is not None
    return weight.T if node.op == "Gemm" and node.attr("transB") else weight


def _constant_input(node: Node) -> int | None:
    return next(
        (k for k, v in enumerate(node.inputs) if v is not None and v.const is not None), None
    )


def _is_per_unit(node: Node, index: int) -> bool:
    """True for a constant that is one number, or one for each unit."""
    constant, units = node.const(index), node.output.tensor.dims[-1]
    assert constant is not None
    return constant.size == 1 or (constant.size == units and constant.shape[-1] == units)


def _rebuilt(
    node: Node, before: Node, data: Value | None, matrix: np.ndarray, bias: np.ndarray | None
) -> Value:
    """`node` with another weight [inputs, outputs] and bias."""
    graph = node.graph
    assert graph is not None
    inputs = [data, graph.constant(matrix), *([] if bias is None else [graph.constant(bias)])]
    attrs = {name: attr for name, attr in node.attrs.items() if name != "transB"}
    return graph.insert(node.op, inputs, attrs, before=before, origin=node.origin).output


def _on_units(node: Node, before: Node, value: Value, kept: np.ndarray) -> Value:
    """`node` on some units only."""
    graph, index = node.graph, _constant_input(node)
    assert graph is not None
    inputs: list[Value | None] = [value]
    if index is not None:
        constant = node.const(index)
        assert constant is not None
        fewer = constant if constant.size == 1 else np.ascontiguousarray(constant[..., kept])
        inputs.insert(index, graph.constant(fewer))
    return graph.insert(node.op, inputs, node.attrs, before=before, origin=node.origin).output
