"""GRU: one matrix product for the inputs of all steps, one kernel for the recurrence."""

from __future__ import annotations

from typing import ClassVar

from tvm import relax, tirx

from graphopt.ir.graph import Node
from graphopt.ops import attentional_gru
from graphopt.ops import gru as one_way
from graphopt.targets.cuda.kernels.gru import gru
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.recurrent_cell import Cell, Direction
from graphopt.targets.relax.ops.recurrent import Layer, hidden_bias

_ACTIVATIONS = (Activation("sigmoid"), Activation("tanh"))


class _Layer(Layer):
    packs: ClassVar[bool] = False

    def kernel(self, linear: bool, given: set[str]) -> tirx.PrimFunc:
        """The kernel for this layer, whose optional buffers `given` are there."""
        options = self.options()
        both = 2 if options["direction"] == "bidirectional" else 1
        chosen = options["activations"] or _ACTIVATIONS * both
        return self._kernel(options["direction"], chosen, options["limit"], linear, given)

    def one_way(self, linear: bool, given: set[str]) -> tirx.PrimFunc:
        """The kernel for an op of ours: forward, with the usual activations."""
        return self._kernel("forward", _ACTIVATIONS, None, linear, given)

    def _kernel(
        self,
        direction: Direction,
        chosen: tuple[Activation, ...],
        limit: float | None,
        linear: bool,
        given: set[str],
    ) -> tirx.PrimFunc:
        named = frozenset(given | ({"extra"} if linear else set()))
        try:
            return gru(Cell("gru", 3, self.hidden, direction, chosen, limit, linear, named))
        except ValueError as error:  # how kernels refuse what they have no code for
            raise self.lower.unsupported(str(error)) from None


@lowers("GRU")
def _gru(lower: CudaLowering, node: Node) -> list[relax.Expr]:
    layer = _Layer(lower, node, gates=3)
    linear = bool(node.attr("linear_before_reset"))
    optional = {"sequence_lens": node.input(4), "initial_h": node.input(5)}
    kernel = layer.kernel(linear, {name for name, value in optional.items() if value is not None})
    return layer.run(kernel, [hidden_bias(lower, layer)] if linear else [], [5])


@lowers(one_way.OP_TYPE, domain=one_way.DOMAIN)
def _last_state(lower: CudaLowering, node: Node) -> relax.Expr:
    layer, linear = _Layer(lower, node, gates=3), one_way.is_linear(node)
    given = {"initial_h"} if node.input(4) is not None else set()
    return layer.last_state(layer.one_way(linear, given), linear, node.inputs[4:])


@lowers(attentional_gru.OP_TYPE, domain=attentional_gru.DOMAIN)
def _attentional_gru(lower: CudaLowering, node: Node) -> relax.Expr:
    layer = _Layer(lower, node, gates=3)
    kernel = layer.one_way(True, {"initial_h", "attention"})
    return layer.last_state(kernel, True, node.inputs[4:5], layer.attention(node.inputs[5]))
