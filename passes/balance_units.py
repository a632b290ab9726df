"""Hidden units as large as their weights, so that neither is lost when both have 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Graph, Node
from graphopt.passes._hidden_layer import HiddenLayer
from graphopt.pipeline.base import Fidelity, Pass, PassContext

_HOMOGENEOUS = frozenset(["Relu", "LeakyRelu"])  # f(s * x) = s * f(x) for s > 0


@dataclass(frozen=True)
class BalanceUnits(Pass):
    """Scales hidden units by powers of two, and the weights of the next layer by the inverse.

    Needs calibration data, a ReLU, and units that only the next layer reads. One range of 8-bit
    codes serves all units of a layer, so that small ones beside a large one are lost. Each is
    scaled to the geometric mean of its largest value on calibration data and of its largest weight
    in the next layer (Xiao et al., "SmoothQuant", 2023, with their exponent 1/2; between layers as
    in Nagel et al., "Data-Free Quantization", 2019). Powers of two change exponents only, so that
    answers keep their bits. Fidelity: exact.

    Before:
        (float[N,1] x) => (float[N,1] y)
        <float[1,2] w = {1, 64}, float[2] b = {0, 0}, float[2,1] v = {1, 0.25}> {
            h = Gemm(x, w, b)
            r = Relu(h)
            y = MatMul(r, v)
        }

    After:
        (float[N,1] x) => (float[N,1] y)
        <float[1,2] w = {1, 4}, float[2] b = {0, 0}, float[2,1] v = {1, 4}> {
            h = Gemm(x, w, b)
            r = Relu(h)
            y = MatMul(r, v)
        }
    """

    name = "balance-units"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        if ctx.budget is None:
            return False
        found = [layer for node in graph.nodes if (layer := _layer(node, ctx)) is not None]
        seen = ctx.budget.observe(graph, [layer.hidden for layer in found]) if found else []
        # From the last one on: a layer's weights are scaled on its output side before that counts.
        return any([_balance(*each) for each in reversed(list(zip(found, seen)))])


def _layer(node: Node, ctx: PassContext) -> HiddenLayer | None:
    layer = HiddenLayer.before(node)
    if not isinstance(layer, HiddenLayer):
        return None
    weights = [layer.first.inputs[1], layer.second.inputs[1]]
    if any(other.op not in _HOMOGENEOUS for other in layer.between):
        ctx.stats.refuse("balance", node, "its activation is not the same at every scale")
    elif any(weight is None or len(weight.uses) > 1 for weight in weights):
        ctx.stats.refuse("balance", node, "a weight is also read elsewhere")
    else:
        return layer
    return None


def _balance(layer: HiddenLayer, batches: list[np.ndarray]) -> bool:
    rows = [np.abs(batch.reshape(-1, layer.units)) for batch in batches if batch.size]
    largest = np.max([part.max(axis=0) for part in rows], axis=0) if rows else np.zeros(1)
    weights = np.abs(layer.outgoing).max(axis=1)
    known = np.isfinite(largest) & (largest > 0) & np.isfinite(weights) & (weights > 0)
    ratio = np.where(known, largest, 1) / np.where(known, weights, 1)
    powers = np.rint(np.log2(ratio) / 2).astype(np.int32)
    if not powers.any():
        return False
    _scale(layer.first, -powers, 1)
    _scale(layer.second, powers, 0)
    return True


def _scale(layer: Node, powers: np.ndarray, axis: int) -> None:
    """Multiply columns (`axis` 1, and the bias) or rows (0) of a weight by powers of two."""
    graph, weight = layer.graph, layer.const(1)
    assert graph is not None and weight is not None
    along_rows = (axis == 0) != bool(layer.op == "Gemm" and layer.attr("transB"))
    scaled = np.ldexp(weight, powers[:, None] if along_rows else powers)
    graph.set_input(layer, 1, graph.constant(scaled))
    bias = layer.const(2)
    if axis == 1 and bias is not None:
        graph.set_input(layer, 2, graph.constant(np.ldexp(bias, powers)))
