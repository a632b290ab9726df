"""Inputs of dense layers in 8 bits, so that layers multiply integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.passes._calibration import CodeRange
from graphopt.passes._dynamic_layer import DynamicLayer, codes_of, row_error
from graphopt.passes._layer_bias import bias_for_shift, mean_row
from graphopt.pipeline.base import LossyPass, PassContext, Proposal
from graphopt.rewrite import Rewriter

Change = Callable[[Graph, dict[Value, Value]], None]
_SURE, _SURE_BY_ROW = 64 * 64, 256 * 64
"""Weights of a layer that multiplies bytes in less time than floats, whatever its shape, wherever
there are such products; with a range for each row it has to have more."""


@dataclass(frozen=True)
class QuantizeActivations(LossyPass):
    """Rounds the inputs of layers whose weights have 8 bits to 8 bits too.

    Needs an error budget, and weights of 8 bits. QuantizeLinear and DequantizeLinear around the
    layer's input say so in standard ONNX; engines with kernels for it, such as ONNX Runtime and
    TensorRT, multiply the codes. The range of the codes is fixed, so that the scores of a row do
    not depend on the rows beside it. Offered are the ranges that lose least squares or least
    information on calibration data, those up to a percentile and those of all; what a layer's
    outputs lose in the mean goes into its bias (Nagel et al., "Data-Free Quantization", 2019).
    Where none of these will do, each row of a wide layer's input can have a range of its own, found
    when the model runs (`graphopt::DynamicMatMul`). Which layers bear it, and with which range, is
    for the budget to say, and only what makes the target faster is done: nothing for a CPU that
    does not multiply bytes. Fidelity: lossy.

    Attributes:
        anywhere: True for all that the budget allows, however fast: for another engine.
        ranges: "static" for fixed ranges only, "dynamic" for those of rows only.

    Before:
        (float[N,32] x) => (float[N,16] y) <int8[32,16] c, float[16] s> {
            w = graphopt.StoredWeights<bits=8, axis=1>(c, s)
            y = MatMul(x, w)
        }

    After:
        (float[N,32] x) => (float[N,16] y)
        <int8[32,16] c, float[16] s, float scale = {0.016970288008451462}, uint8 zero = {137}> {
            w = DequantizeLinear<axis=1>(c, s)
            q = QuantizeLinear(x, scale, zero)
            d = DequantizeLinear(q, scale, zero)
            y = MatMul(d, w)
        }
    """

    anywhere: bool = False
    ranges: Literal["any", "static", "dynamic"] = "any"

    name = "quantize-activations"

    def propose(self, graph: Graph, ctx: PassContext) -> Iterable[Proposal]:
        assert ctx.budget is not None
        layers = {node: data for node in graph.nodes if (data := _data_of(node, ctx)) is not None}
        read = list(dict.fromkeys(layers.values()))
        seen = dict(zip(read, ctx.budget.observe(graph, read) if read else []))
        if self.ranges != "dynamic":
            yield from self._in_fixed_ranges(layers, seen)
        if self.ranges != "static" and ctx.budget.row_levels:
            yield from self._row_by_row(layers, seen, ctx)

    def _in_fixed_ranges(
        self, layers: Mapping[Node, Value], seen: Mapping[Value, list[np.ndarray]]
    ) -> Iterator[Proposal]:
        ranges = {value: CodeRange.of(batches) for value, batches in seen.items()}
        for node, data in layers.items():
            for chosen in ranges[data]:
                lost = mean_row([chosen.rounded(b) - b for b in seen[data]])
                change = _quantized(node, data, chosen, bias_for_shift(node, lost))
                yield self._proposal(node, "int8", chosen.error, change)

    def _row_by_row(
        self,
        layers: Mapping[Node, Value],
        seen: Mapping[Value, list[np.ndarray]],
        ctx: PassContext,
    ) -> Iterator[Proposal]:
        assert ctx.budget is not None
        levels = ctx.budget.row_levels
        errors = {value: row_error(batches, levels) for value, batches in seen.items()}
        for node, data in layers.items():
            made = DynamicLayer.of(node, data, levels)
            if isinstance(made, str):
                ctx.stats.refuse("range of each row", node, made)
            else:
                yield self._proposal(node, "int8 by row", errors[data], made.put)

    def _proposal(self, layer: Node, what: str, error: float, change: Change) -> Proposal:
        codes, name, speed = codes_of(layer), layer.output.name, not self.anywhere
        assert codes is not None
        narrow = speed and codes.size < (_SURE if what == "int8" else _SURE_BY_ROW)
        return Proposal(name, what, codes.nbytes, error, change, for_speed=speed, may_slow=narrow)


def _data_of(node: Node, ctx: PassContext) -> Value | None:
    """The operand of a layer with weights in 8 bits, if it has 32."""
    data = node.input(0)
    if node.op not in ("Gemm", "MatMul") or data is None or codes_of(node) is None:
        return None
    if node.attr("transA", 0):
        ctx.stats.refuse("quantize", node, "its operand is transposed")
        return None
    made = data.producer
    done = made is not None and made.op == "DequantizeLinear"
    return None if done or data.dtype != "float32" or data.const is not None else data


def _quantized(node: Node, data: Value, chosen: CodeRange, bias: np.ndarray | None) -> Change:
    def apply(graph: Graph, values: Mapping[Value, Value]) -> None:
        layer = values[node.output].producer
        assert layer is not None
        rw = Rewriter(layer, [layer])
        steps = rw.const(chosen.scale), rw.const(chosen.zero)
        codes = rw.op.QuantizeLinear(values[data], *steps)
        rw.graph.set_input(layer, 0, rw.op.DequantizeLinear(codes, *steps))
        restore = layer.operands[1].producer
        if restore is not None and restore.domain:
            axis = restore.attrs["axis"]
            weight = Rewriter(layer, [restore]).op.DequantizeLinear(*restore.inputs, axis=axis)
            rw.graph.set_input(layer, 1, weight)
            if not restore.output.uses:
                rw.graph.erase(restore)
        if bias is not None:
            rw.graph.set_input(layer, 2, rw.const(bias))

    return apply
