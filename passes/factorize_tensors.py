"""Layers over products of features as sums of few products, by CP decomposition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ops.compressed_interaction import DOMAIN, OP_TYPE
from graphopt.passes._cp import BilinearLayer, CpFactors, is_available
from graphopt.passes._inline import replace
from graphopt.pipeline.base import LossyPass, PassContext, Proposal
from graphopt.rewrite import Rewriter

_LEAST_RANK = 8  # kernels compute no fewer columns at once; each rank offered is twice the last one
_ENOUGH = 1e-3  # a loss of the outputs' norm, below which no larger rank is worth a trial
_ROWS = 8192  # of calibration data that a layer is fitted on
_COLUMNS = [0, 2, 1]  # features last, so that a layer over them is a product of matrices


@dataclass(frozen=True)
class FactorizeTensors(LossyPass):
    """Computes a compressed interaction from a few products of sums of features (CP).

    Needs an error budget, a weight that is smaller and takes fewer products so, and tensorly (`pip
    install 'graphopt[tensor]'`). The weights of a layer of xDeepFM's compressed interaction network
    are a tensor of maps, features on the left and features on the right. As a sum of `r` outer
    products of vectors (a CP decomposition) it takes two thin layers, an elementwise product and a
    layer on top. The factors are found by alternating least squares after whitening both sets of
    features; what is above the product is then fitted to the outputs on calibration data. Which
    rank a layer gets, if any, is for the budget to say, of which half at most is spent by then.
    Fidelity: lossy.

    Attributes:
        min_bytes: smaller weights are left alone.
        max_share: what factors may have of the weight's elements, and of the layer's products.

    Before:
        (float[N,8,4] x, float[N,10,4] y) => (float[N,48,4] z) <float[80,48] w, float[48] b> {
            z = graphopt.CompressedInteraction<activation="relu">(x, y, w, b)
        }

    After:
        (float[N,8,4] x, float[N,10,4] y) => (float[N,48,4] z)
        <float[8,8] left, float[10,8] right, float[8,48] top, float[48] b> {
            s = Transpose<perm=[0, 2, 1]>(x)
            u = MatMul(s, left)
            t = Transpose<perm=[0, 2, 1]>(y)
            v = MatMul(t, right)
            p = Mul(u, v)
            o = MatMul(p, top)
            a = Add(o, b)
            r = Relu(a)
            z = Transpose<perm=[0, 2, 1]>(r)
        }
    """

    min_bytes: int = 8192
    max_share: float = 0.5

    name = "factorize-tensors"
    share: ClassVar[float] = 0.5

    def propose(self, graph: Graph, ctx: PassContext) -> Iterable[Proposal]:
        assert ctx.budget is not None
        layers = [node for node in graph.nodes if self._is_layer(node, ctx)]
        read = list(dict.fromkeys(value for node in layers for value in _features(node)))
        seen = dict(zip(read, ctx.budget.observe(graph, read) if read else []))
        for node in layers:
            rows = _rows([seen[value] for value in _features(node)])
            if rows is not None:
                yield from self._proposals(node, rows)

    def _is_layer(self, node: Node, ctx: PassContext) -> bool:
        weight = node.const(2)
        if (node.op_type, node.domain) != (OP_TYPE, DOMAIN) or weight is None:
            return False
        if node.const(3) is None or weight.dtype != np.float32 or weight.nbytes < self.min_bytes:
            return False
        if not all(isinstance(size, int) for v in _features(node) for size in v.tensor.dims[1:]):
            return False
        reason = _refusal(weight)
        if not reason and self._most(node) < _LEAST_RANK:
            reason = "factors would not be smaller, or would take as many products"
        if reason:
            ctx.stats.refuse("factorize", node, reason)
        return not reason

    def _most(self, node: Node) -> int:
        """The largest rank that factors may have."""
        left, right, maps = _sizes(node)
        pairs = left * right
        if node.inputs[0] is node.inputs[1]:  # kernels compute the product of two features once
            pairs = left * (left + 1) // 2
        return int(self.max_share * pairs * maps) // (left + right + maps)

    def _proposals(self, node: Node, rows: Sequence[np.ndarray]) -> Iterator[Proposal]:
        weight, (left, right, maps) = node.const(2), _sizes(node)
        assert weight is not None
        tensor = weight.reshape(left, right, maps)
        forms = [tensor]
        if node.inputs[0] is node.inputs[1]:  # what differs from the other order has no effect
            forms.append((tensor + tensor.swapaxes(0, 1)) / 2)
        layers, rank = [BilinearLayer.of(form, *rows) for form in forms], _LEAST_RANK
        while rank <= self._most(node):
            factors = min((layer.factors(rank) for layer in layers), key=lambda f: f.error)
            saves = weight.nbytes - weight.itemsize * rank * (left + right + maps)
            change, name = _Into(node, factors).apply, node.output.name
            what = f"CP rank {rank}"
            yield Proposal(name, what, saves, factors.error, change, may_slow=True)
            if factors.error < _ENOUGH:
                return
            rank *= 2


def _features(layer: Node) -> list[Value]:
    """The two sets of features [n, f, d] that `layer` multiplies."""
    return [value for value in layer.inputs[:2] if value is not None]


def _sizes(layer: Node) -> tuple[int, int, int]:
    """How many features `layer` has on the left and on the right, and how many maps."""
    left, right = (value.tensor.dims[1] for value in _features(layer))
    maps = layer.output.tensor.dims[1]
    assert isinstance(left, int) and isinstance(right, int) and isinstance(maps, int)
    return left, right, maps


def _refusal(weight: np.ndarray) -> str:
    if not np.isfinite(weight).all():
        return "the weight is not all numbers"
    if not weight.any():
        return "the weight is all zeros"
    if not is_available():
        return "needs tensorly: pip install 'graphopt[tensor]'"
    return ""


def _rows(seen: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray] | None:
    """Some elements of both sets of features [rows, f]; None if they are not all numbers."""
    sides = [np.concatenate([batch.transpose(_COLUMNS) for batch in batches]) for batches in seen]
    flat = [side.reshape(-1, side.shape[-1]) for side in sides]
    count = len(flat[0])
    if count > _ROWS:
        chosen = np.sort(np.random.default_rng(0).permutation(count)[:_ROWS])
        flat = [side[chosen] for side in flat]
    return flat if all(np.isfinite(side).all() for side in flat) else None


@dataclass(frozen=True, eq=False)
class _Into:
    """A change of `layer` to factors."""

    layer: Node
    factors: CpFactors

    def apply(self, graph: Graph, values: Mapping[Value, Value]) -> None:
        layer, found = values[self.layer.output].producer, self.factors
        assert layer is not None
        rw, bias = Rewriter(layer, [layer]), layer.const(3)
        assert bias is not None

        def constant(array: np.ndarray) -> Value:
            return rw.const(np.ascontiguousarray(array, np.float32))

        sums = [
            rw.op.MatMul(rw.op.Transpose(value, perm=_COLUMNS), constant(factor))
            for value, factor in zip(_features(layer), (found.left, found.right))
        ]
        outputs = rw.op.MatMul(rw.op.Mul(*sums), constant(found.outgoing))
        result = rw.op.Add(outputs, constant(bias + found.shift))
        if layer.attr("activation", "none") == "relu":
            result = rw.op.Relu(result)
        replace(layer, [rw.op.Transpose(result, perm=_COLUMNS)])
