"""GRU: one matrix product for the inputs of all steps, one kernel for the recurrence."""

from __future__ import annotations

from typing import ClassVar

from tvm import relax, tirx

from graphopt.ir.graph import Node
from graphopt.ops import attentional_gru
from graphopt.targets.cuda.kernels.gru import gru
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.recurrent_cell import Cell
from graphopt.targets.relax.ops.recurrent import Layer, hidden_bias


class _Layer(Layer):
    packs: ClassVar[bool] = False

    def kernel(self, linear: bool, given: set[str]) -> tirx.PrimFunc:
        """The kernel for this layer, whose optional buffers `given` are there."""
        options = self.options()
        both = 2 if options["direction"] == "bidirectional" else 1
        chosen = options["activations"] or (Activation("sigmoid"), Activation("tanh")) * both
        named = frozenset(given | ({"extra"} if linear else set()))
        direction, limit = options["direction"], options["limit"]
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


@lowers(attentional_gru.OP_TYPE, domain=attentional_gru.DOMAIN)
def _attentional_gru(lower: CudaLowering, node: Node) -> relax.Expr:
    layer = _Layer(lower, node, gates=3)
    initial, attention = node.inputs[4:]
    assert initial is not None and attention is not None
    steps, samples = layer.sizes(layer.steps, layer.samples)
    scale = lower.reshape(lower.expr(attention), [steps, samples])
    chosen = (Activation("sigmoid"), Activation("tanh"))
    given = frozenset(["extra", "initial_h", "attention"])
    kernel = gru(Cell("gru", 3, layer.hidden, "forward", chosen, None, True, given))
    arguments = [layer.projected(True), layer.recurrence(), hidden_bias(lower, layer)]
    final = [1, samples, layer.hidden]
    outs = [([steps, *final], "float32"), (final, "float32")]
    return lower.kernel(kernel, [*arguments, lower.expr(initial), scale], outs)[1]
