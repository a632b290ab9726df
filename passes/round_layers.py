"""Operands of dense layers in bfloat16, so that layers multiply it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import dtype_to_numpy, dtype_to_onnx
from graphopt.pipeline.base import LossyPass, PassContext, Proposal
from graphopt.rewrite import Rewriter


@dataclass(frozen=True)
class RoundLayers(LossyPass):
    """Rounds the operands of wide layers that stay in float32 to bfloat16, where that is faster.

    Needs an error budget, constant weights, and a target that multiplies bfloat16. Operands keep 8
    significant bits, sums stay float32, and weights take half the memory. Casts say so in standard
    ONNX, so that the budget is spent on what the target will compute. For layers that do not bear 8
    bits. Fidelity: lossy.

    Attributes:
        min_size: layers with fewer inputs or outputs gain nothing.

    Before:
        (float[N,32] x) => (float[N,32] y) <float[32,32] w> {
            y = MatMul(x, w)
        }

    After:
        (float[N,32] x) => (float[N,32] y) <bfloat16[32,32] w> {
            r = Cast<to=16>(x)
            d = Cast<to=1>(r)
            v = Cast<to=1>(w)
            y = MatMul(d, v)
        }
    """

    min_size: int = 32

    name = "round-layers"

    def propose(self, graph: Graph, ctx: PassContext) -> Iterable[Proposal]:
        assert ctx.budget is not None
        if not ctx.budget.multiplies_bfloat16:
            return
        for node in graph.nodes:
            weights = _weights_of(node)
            if weights is None:
                continue
            if min(weights.shape) < self.min_size:
                ctx.stats.refuse("round", node, "the layer is narrow")
                continue
            narrow = weights.astype(dtype_to_numpy("bfloat16"))
            error = float(np.sqrt(np.square(narrow.astype(np.float32) - weights).mean()))
            apply = _rounded(node, narrow)
            yield Proposal(node.output.name, "bfloat16", narrow.nbytes, error, apply)


def _weights_of(node: Node) -> np.ndarray | None:
    """The weights of a layer that computes in float32, as float32; None for other nodes."""
    data, weight = node.input(0), node.input(1)
    if (
        node.op not in ("Gemm", "MatMul")
        or data is None
        or weight is None
        or node.attr("transA", 0)
    ):
        return None
    restored, made = weight.producer, data.producer
    stored = weight.const if restored is None else None
    if restored is not None and restored.op == "Cast":
        stored = restored.const(0)  # of half precision
    if stored is None or stored.dtype not in (np.float32, np.float16) or stored.ndim != 2:
        return None
    rounds = made is not None and made.op in ("Cast", "DequantizeLinear")
    alone = len(weight.uses) == 1 and np.isfinite(stored).all()
    if rounds or not alone or data.dtype != "float32" or data.const is not None:
        return None
    return stored.astype(np.float32)


def _rounded(node: Node, narrow: np.ndarray) -> Callable[[Graph, Mapping[Value, Value]], None]:
    def apply(graph: Graph, values: Mapping[Value, Value]) -> None:
        layer = values[node.output].producer
        assert layer is not None
        rw, before = Rewriter(layer, [layer]), layer.inputs[1]
        short, long = dtype_to_onnx("bfloat16"), dtype_to_onnx("float32")
        data = rw.op.Cast(rw.op.Cast(layer.inputs[0], to=short), to=long)
        rw.graph.set_input(layer, 0, data)
        rw.graph.set_input(layer, 1, rw.op.Cast(rw.const(narrow), to=long))
        if before is not None and before.producer is not None:
            rw.graph.erase(before.producer)

    return apply
