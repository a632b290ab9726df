"""Inputs of dense layers in 8 bits, so that layers multiply integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.pipeline.base import LossyPass, PassContext, Proposal

_TAILS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)  # shares of the inputs that clipping may cut off
_ELEMENTS = 1 << 20  # of calibration data that a range is chosen on


@dataclass(frozen=True)
class QuantizeActivations(LossyPass):
    """Rounds the inputs of layers whose weights have 8 bits to 8 bits too.

    Needs an error budget, and weights of 8 bits. QuantizeLinear and DequantizeLinear around the
    layer's input say so in standard ONNX; engines with kernels for it, such as ONNX Runtime and
    TensorRT, multiply the codes. The range of the codes is fixed: the one that loses least on
    calibration data. So the scores of a row do not depend on the rows beside it. Which layers bear
    it is for the budget to say. Fidelity: lossy.

    Before:
        (float[N,32] x) => (float[N,16] y) <int8[32,16] c, float[16] s> {
            w = DequantizeLinear<axis=1>(c, s)
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

    name = "quantize-activations"

    def propose(self, graph: Graph, ctx: PassContext) -> Iterable[Proposal]:
        assert ctx.budget is not None
        layers = {node: data for node in graph.nodes if (data := _data_of(node, ctx)) is not None}
        read = list(dict.fromkeys(layers.values()))
        seen = zip(read, ctx.budget.observe(graph, read) if read else [])
        ranges = {value: CodeRange.of(batches) for value, batches in seen}
        for node, data in layers.items():
            chosen, weight = ranges[data], node.input(1)
            assert weight is not None and weight.producer is not None
            codes = weight.producer.const(0)
            assert codes is not None
            change = _quantized(node, data, chosen)
            yield Proposal(node.output.name, "int8", codes.nbytes, chosen.error, change)


def _data_of(node: Node, ctx: PassContext) -> Value | None:
    """The operand of a layer with weights in 8 bits, if it has 32."""
    data, weight = node.input(0), node.input(1)
    if node.op not in ("Gemm", "MatMul") or data is None or weight is None:
        return None
    restored = weight.producer
    if restored is None or restored.op != "DequantizeLinear" or restored.const(0) is None:
        return None
    if node.attr("transA", 0):
        ctx.stats.refuse("quantize", node, "its operand is transposed")
        return None
    made = data.producer
    done = made is not None and made.op == "DequantizeLinear"
    return None if done or data.dtype != "float32" or data.const is not None else data


@dataclass(frozen=True)
class CodeRange:
    """How uint8 codes stand for floats: (code - zero) * scale.

    Attributes:
        error: root mean square of what is lost, relative to that of the floats.
    """

    scale: np.ndarray
    zero: np.ndarray
    error: float

    @staticmethod
    def of(batches: list[np.ndarray]) -> CodeRange:
        """The range that loses least of some floats, clipping included. It always holds 0."""
        floats = np.concatenate([batch.reshape(-1) for batch in batches])
        floats = floats[:: max(1, len(floats) // _ELEMENTS)]
        tails = [np.quantile(floats, [tail, 1 - tail]) for tail in _TAILS] if len(floats) else []
        found = [_over(floats, low, high) for low, high in tails]
        return min(found, key=lambda r: r.error, default=_over(np.zeros(1), 0.0, 1.0))

    def rounded(self, floats: np.ndarray) -> np.ndarray:
        """What codes make of `floats`."""
        codes = np.clip(np.rint(floats / self.scale) + self.zero, 0, 255)
        return (codes - self.zero) * self.scale


def _over(floats: np.ndarray, low: float, high: float) -> CodeRange:
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = np.float32((high - low) / 255 or 1.0)
    zero = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
    found = CodeRange(np.asarray(scale), np.asarray(zero), 0.0)
    lost = np.square(found.rounded(floats) - floats).mean()
    error = float(np.sqrt(lost / (np.square(floats, dtype=np.float64).mean() or 1.0)))
    return CodeRange(found.scale, found.zero, error)


def _quantized(
    node: Node, data: Value, chosen: CodeRange
) -> Callable[[Graph, Mapping[Value, Value]], None]:
    def apply(graph: Graph, values: Mapping[Value, Value]) -> None:
        layer = values[node.output].producer
        assert layer is not None and layer.graph is not None
        scale, zero = graph.constant(chosen.scale), graph.constant(chosen.zero)
        value = values[data]
        for op in ("QuantizeLinear", "DequantizeLinear"):
            inputs = [value, scale, zero]
            made = layer.graph.insert(op, inputs, before=layer, origin=layer.origin)
            value = made.output
        layer.graph.set_input(layer, 0, value)

    return apply
