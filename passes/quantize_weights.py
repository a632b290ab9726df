"""Weights of dense, recurrent and convolutional layers in 8 bits or half precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Attr, Graph, Node, Use, Value
from graphopt.passes._rounding import RoundedRows
from graphopt.pipeline.base import LossyPass, PassContext, Proposal

_RECURRENT = frozenset(["GRU", "LSTM", "RNN", "graphopt::AttentionalGRU", "graphopt::GRU"])
_HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class QuantizeWeights(LossyPass):
    """Stores weights of layers in 8 bits with a scale per output, or in float16.

    Needs an error budget, and constant weights. The model holds the codes and dequantizes them; it
    computes in float32 as before, so that the scores of a row depend on nothing but the row. Which
    weights stay as they are is for the budget to say. Fidelity: lossy.

    Attributes:
        min_bytes: smaller weights are not worth an op.

    Before:
        (float[N,32] x) => (float[N,16] y) <float[32,16] w, float[16] b> {
            y = Gemm(x, w, b)
        }

    After:
        (float[N,32] x) => (float[N,16] y) <int8[32,16] codes, float[16] scales, float[16] b> {
            w = DequantizeLinear<axis=1>(codes, scales)
            y = Gemm(x, w, b)
        }
    """

    min_bytes: int = 1024

    name = "quantize-weights"

    def propose(self, graph: Graph, ctx: PassContext) -> Iterable[Proposal]:
        for weight in graph.constants():
            array, axis = weight.const, _outputs_axis(weight)
            if axis is None or array is None or array.dtype != np.float32:
                continue
            if array.nbytes < self.min_bytes:
                ctx.stats.refuse("quantize", weight.users[0], "the weight is small")
            elif not np.isfinite(array).all():
                ctx.stats.refuse("quantize", weight.users[0], "the weight is not all numbers")
            else:
                yield from _proposals(weight, array, axis)


def _outputs_axis(weight: Value) -> int | None:
    """The axis of the outputs of the layers that `weight` serves; None if it serves others too."""
    axes = {_axis_in(use, weight.rank or 0) for use in weight.uses}
    return axes.pop() if len(axes) == 1 else None


def _axis_in(use: Use, rank: int) -> int | None:
    node, slot = use
    if not isinstance(node, Node):
        return None
    if node.op == "Gemm" and slot == 1:
        return 0 if node.attr("transB") else 1
    if node.op == "MatMul" and slot == 1 and rank >= 2:
        return rank - 1
    if node.op == "Conv" and slot == 1:
        return 0
    return 1 if node.op in _RECURRENT and slot in (1, 2) else None


def _proposals(weight: Value, array: np.ndarray, axis: int) -> Iterator[Proposal]:
    rows = np.moveaxis(array, axis, 0)
    rounded = RoundedRows.of(rows.reshape(len(rows), -1), 8, half_scales=False)
    codes = np.moveaxis(rounded.codes.reshape(rows.shape), 0, axis)
    eight = _change(weight, [np.ascontiguousarray(codes), rounded.scales], {"axis": axis})
    saves = array.nbytes - codes.nbytes - rounded.scales.nbytes
    yield Proposal(weight.name, "int8", saves, rounded.error, eight)
    if np.abs(array).max(initial=0) < _HALF_MAX:
        half = array.astype(np.float16)
        error = float(np.sqrt(np.square(half - array, dtype=np.float64).mean()))
        sixteen = _change(weight, [half], {"to": 1})
        yield Proposal(weight.name, "float16", array.nbytes - half.nbytes, error, sixteen)


def _change(
    weight: Value, stored: list[np.ndarray], attrs: dict[str, Attr]
) -> Callable[[Graph, Mapping[Value, Value]], None]:
    def apply(graph: Graph, values: Mapping[Value, Value]) -> None:
        target = values[weight]
        first = next(node for node in graph.nodes if reads(node, target))
        constants = [graph.constant(array, f"{target.name}.{k}") for k, array in enumerate(stored)]
        op = "DequantizeLinear" if "axis" in attrs else "Cast"
        restored = graph.insert(op, constants, attrs, before=first, origin=first.origin)
        graph.replace_uses(target, restored.output)

    return apply


def reads(node: Node, value: Value) -> bool:
    """True if `node`, or a node inside of it, reads `value`."""
    inner = (n for subgraph in node.subgraphs for n in subgraph.walk())
    return value in node.inputs or any(value in n.inputs for n in inner)
