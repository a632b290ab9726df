"""RNN, GRU and LSTM: one matrix product for the inputs of all steps, one kernel for the rest."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from tvm import relax, tirx

from graphopt.ir.graph import Node
from graphopt.ops import attentional_gru
from graphopt.ops import gru as one_way
from graphopt.targets.cuda.gemm_defaults import default_ranges
from graphopt.targets.cuda.kernels.gemm import gemm, math_for
from graphopt.targets.cuda.kernels.packed import pack_weights
from graphopt.targets.cuda.kernels.recurrent import recurrent
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.recurrent_cell import Cell
from graphopt.targets.relax.ops.recurrent import Layer, hidden_bias

_SIGMOID, _TANH = Activation("sigmoid"), Activation("tanh")
_ACTIVATIONS = {"rnn": (_TANH,), "gru": (_SIGMOID, _TANH), "lstm": (_SIGMOID, _TANH, _TANH)}
_GATES = {"rnn": 1, "gru": 3, "lstm": 4}
_OPTIONAL = {"sequence_lens": 4, "initial_h": 5, "initial_c": 6}  # inputs of ONNX's ops


class _Layer(Layer):
    lower: CudaLowering
    last_alone: ClassVar[bool] = True

    def __init__(self, lower: CudaLowering, node: Node, kind: str) -> None:
        super().__init__(lower, node, _GATES[kind])
        self.kind = kind

    def _packed(
        self, flat: relax.Expr, weights: np.ndarray, added: np.ndarray | None, rows: Any
    ) -> relax.Expr:
        """flat[rows, k] @ weights[n, k]^T + added[n] by the kernel of dense layers."""
        (n, k), math = weights.shape, math_for(weights.T, self.lower.math)
        row = np.zeros(n, np.float32) if added is None else added
        arguments = [flat, *map(self.lower.constant, (pack_weights(weights.T, math), row))]
        kernel = gemm(k, n, math, default_ranges(n, math))
        return self.lower.kernel(kernel, arguments, [([rows, n], "float32")])[0]

    def kernel(self, option: bool, *extra: str) -> tirx.PrimFunc:
        """The kernel for an op of ONNX; `extra` if it has hidden biases or peepholes."""
        given = [name for name, k in _OPTIONAL.items() if self.node.input(k) is not None]
        options = self.options()
        both = 2 if options["direction"] == "bidirectional" else 1
        chosen = options["activations"] or _ACTIVATIONS[self.kind] * both
        facts = {"direction": options["direction"], "limit": options["limit"]}
        return self._kernel(chosen, option, [*given, *extra], **facts)

    def one_way(self, linear: bool, *given: str) -> tirx.PrimFunc:
        """The kernel for an op of ours: forward, with the usual activations."""
        names = [*given, *(["extra"] if linear else [])]
        facts = {"direction": "forward", "limit": None}
        return self._kernel(_ACTIVATIONS[self.kind], linear, names, all_steps=False, **facts)

    def _kernel(
        self,
        chosen: tuple[Activation, ...],
        option: bool,
        names: list[str],
        all_steps: bool = True,
        **facts: Any,
    ) -> tirx.PrimFunc:
        try:
            return recurrent(
                Cell(
                    kind=self.kind,
                    gates=self.gates,
                    hidden=self.hidden,
                    activations=chosen,
                    option=option,
                    optional=frozenset(names),
                    **facts,
                ),
                all_steps,
            )
        except ValueError as error:  # how kernels refuse what they have no code for
            raise self.lower.unsupported(str(error)) from None


@lowers("RNN")
def _rnn(lower: CudaLowering, node: Node) -> list[relax.Expr]:
    layer = _Layer(lower, node, "rnn")
    return layer.run(layer.kernel(False), [], [5])


@lowers("GRU")
def _gru(lower: CudaLowering, node: Node) -> list[relax.Expr]:
    layer, linear = _Layer(lower, node, "gru"), bool(node.attr("linear_before_reset"))
    kernel = layer.kernel(linear, *(["extra"] if linear else []))
    return layer.run(kernel, [hidden_bias(lower, layer)] if linear else [], [5])


@lowers("LSTM")
def _lstm(lower: CudaLowering, node: Node) -> list[relax.Expr]:
    layer, peepholes = _Layer(lower, node, "lstm"), node.input(7)
    extra = [] if peepholes is None else [lower.expr(peepholes)]
    kernel = layer.kernel(bool(node.attr("input_forget")), *(["extra"] if extra else []))
    return layer.run(kernel, extra, [5, 6])


@lowers(one_way.OP_TYPE, domain=one_way.DOMAIN)
def _last_state(lower: CudaLowering, node: Node) -> relax.Expr:
    layer, linear = _Layer(lower, node, "gru"), one_way.is_linear(node)
    given = ["initial_h"] if node.input(4) is not None else []
    return layer.last_state(layer.one_way(linear, *given), linear, node.inputs[4:])


@lowers(attentional_gru.OP_TYPE, domain=attentional_gru.DOMAIN)
def _attentional_gru(lower: CudaLowering, node: Node) -> relax.Expr:
    layer = _Layer(lower, node, "gru")
    kernel = layer.one_way(True, "initial_h", "attention")
    return layer.last_state(kernel, True, node.inputs[4:5], layer.attention(node.inputs[5]))
