"""Weights of dense, recurrent and convolutional layers in 16, 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphopt.ir.graph import Attr, Graph, Node, Use, Value
from graphopt.ops.quantized_lookup import packed
from graphopt.ops.stored_weights import DOMAIN, OP_TYPE
from graphopt.passes._rounding import RoundedRows
from graphopt.pipeline.base import LossyPass, PassContext, Proposal

_RECURRENT = frozenset(["GRU", "LSTM", "RNN", "graphopt::AttentionalGRU", "graphopt::GRU"])
_ROWS = 8192  # of calibration data that codes are fitted on
_MOST_INPUTS = 2048  # of a layer, which fitting takes the cube of
_GROUP = 32  # weights of an output that share a scale in 4 bits
_HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class QuantizeWeights(LossyPass):
    """Stores weights of layers in 8 bits with a scale per output, in 4 with more, or in float16.

    Needs an error budget, and constant weights. Codes are rounded for the inputs that a layer meets
    on calibration data. The model holds them and restores them; it computes in float32 as before,
    so that the scores of a row depend on nothing but the row. In 4 bits every 32 weights of an
    output have a scale; only matrices of dense layers are stored so, for targets that do not
    multiply bytes. Which weights stay as they are is for the budget to say. Fidelity: lossy.

    Attributes:
        min_bytes: smaller weights are not worth an op.

    Before:
        (float[N,32] x) => (float[N,16] y) <float[32,16] w, float[16] b> {
            y = Gemm(x, w, b)
        }

    After:
        (float[N,32] x) => (float[N,16] y) <uint8[16,16] codes, float16[16,1] scales, float[16] b> {
            w = graphopt.StoredWeights<bits=4, columns=32, turned=1>(codes, scales)
            y = Gemm(x, w, b)
        }
    """

    min_bytes: int = 1024

    name = "quantize-weights"

    def propose(self, graph: Graph, ctx: PassContext) -> Iterable[Proposal]:
        candidates = dict(self._candidates(graph, ctx))
        met = {weight: data for weight in candidates if (data := _data_of(weight)) is not None}
        assert ctx.budget is not None
        seen = dict(zip(met, ctx.budget.observe(graph, list(met.values())) if met else []))
        for weight, axis in candidates.items():
            yield from _proposals(weight, axis, seen.get(weight))

    def _candidates(self, graph: Graph, ctx: PassContext) -> Iterator[tuple[Value, int]]:
        """Weights that could have fewer bits, and the axis of their outputs."""
        for weight in graph.constants():
            array, axis = weight.const, _outputs_axis(weight)
            if axis is None or array is None or array.dtype != np.float32:
                continue
            if array.nbytes < self.min_bytes:
                ctx.stats.refuse("quantize", weight.users[0], "the weight is small")
            elif not np.isfinite(array).all():
                ctx.stats.refuse("quantize", weight.users[0], "the weight is not all numbers")
            else:
                yield weight, axis


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


def _data_of(weight: Value) -> Value | None:
    """What a matrix multiplies, if it serves one layer and no more inputs than can be fitted."""
    (layer, _), *others = weight.uses
    if others or not isinstance(layer, Node) or layer.op not in ("Gemm", "MatMul"):
        return None
    data = layer.inputs[0]
    if weight.rank != 2 or layer.attr("transA", 0) or data is None or data.const is not None:
        return None
    inputs = weight.tensor.dims[1 if layer.attr("transB", 0) else 0]
    return data if isinstance(inputs, int) and inputs <= _MOST_INPUTS else None


def _proposals(
    weight: Value, axis: int, batches: Sequence[np.ndarray] | None
) -> Iterator[Proposal]:
    array = weight.const
    assert array is not None
    rows = np.moveaxis(array, axis, 0)
    matrix = rows.reshape(len(rows), -1)
    moments = None if batches is None else _moments(batches, matrix.shape[1])
    rounded = _fitted(matrix, moments, 8, None)
    codes = np.ascontiguousarray(np.moveaxis(rounded.codes.reshape(rows.shape), 0, axis))
    yield _proposal(weight, "int8", [codes, rounded.scales], rounded.error, bits=8, axis=axis)
    if batches is not None:
        padding = -matrix.shape[1] % _GROUP
        wide = np.pad(matrix, ((0, 0), (0, padding)))
        rounded = _fitted(wide, moments, 4, _GROUP)
        attrs: dict[str, Attr] = {"bits": 4, "columns": matrix.shape[1]}
        attrs |= {"turned": 1} if axis else {}
        stored = [packed(rounded.codes), rounded.scales]
        proposal = _proposal(weight, "int4", stored, rounded.error, **attrs)
        yield replace(proposal, in_floats=True)
    if np.abs(array).max(initial=0) < _HALF_MAX:
        half = array.astype(np.float16)
        error = float(np.sqrt(np.square(half - array, dtype=np.float64).mean()))
        yield _proposal(weight, "float16", [half], error, to=1)


def _moments(batches: Sequence[np.ndarray], inputs: int) -> np.ndarray | None:
    """Second moments of what a layer reads; None if it is not all numbers."""
    data = np.concatenate([batch.reshape(-1, inputs) for batch in batches])
    data = data[:: max(1, len(data) // _ROWS)].astype(np.float64)
    return data.T @ data / max(1, len(data)) if np.isfinite(data).all() else None


def _fitted(
    matrix: np.ndarray, moments: np.ndarray | None, bits: int, group: int | None
) -> RoundedRows:
    """A weight [outputs, inputs] in few bits, for inputs of some second moments if they are known.

    Inputs beyond those are zero.
    """
    rounded = RoundedRows.of(matrix, bits, half_scales=bits == 4, group=group)
    if moments is None:
        return rounded
    padding = matrix.shape[1] - len(moments)
    return rounded.adapted(matrix, np.pad(moments, (0, padding)))


def _proposal(
    weight: Value, what: str, stored: Sequence[np.ndarray], error: float, **attrs: Attr
) -> Proposal:
    def apply(graph: Graph, values: Mapping[Value, Value]) -> None:
        target = values[weight]
        first = next(node for node in graph.nodes if reads(node, target))
        constants = [graph.constant(array, f"{target.name}.{k}") for k, array in enumerate(stored)]
        op, domain = (OP_TYPE, DOMAIN) if "bits" in attrs else ("Cast", "")
        restored = graph.insert(
            op, constants, dict(attrs), domain=domain, before=first, origin=first.origin
        )
        graph.replace_uses(target, restored.output)

    assert weight.const is not None
    saves = weight.const.nbytes - sum(array.nbytes for array in stored)
    return Proposal(weight.name, what, saves, error, apply)


def reads(node: Node, value: Value) -> bool:
    """True if `node`, or a node inside of it, reads `value`."""
    inner = (n for subgraph in node.subgraphs for n in subgraph.walk())
    return value in node.inputs or any(value in n.inputs for n in inner)
