"""Dense layers as two thinner ones, where their inputs need no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy  # loads its parts on first use

from graphopt.ir.graph import Graph, Node, Value
from graphopt.passes._inline import replace
from graphopt.passes._linear import matrix_of
from graphopt.passes._ranks import ranks_of
from graphopt.pipeline.base import LossyPass, PassContext, Proposal
from graphopt.rewrite import Rewriter

_LOSSES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # of the outputs' norm, as offers to the budget
_STEP = 8  # ranks are multiples: kernels compute no fewer columns at once
_ROWS = 8192  # of calibration data that a layer is fitted on
_RIDGE = 1e-4  # of the mean variance, for directions that calibration data do not show


@dataclass(frozen=True)
class FactorizeLowRank(LossyPass):
    """Splits a layer's weight into two thin factors that are smaller and faster together.

    Needs an error budget, and a product that is smaller in two. The factors are the best of their
    rank for the inputs that the layer sees on calibration data, not for the weight alone: a
    singular value decomposition after whitening the inputs (Wang et al., "SVD-LLM", 2024). Which
    rank a layer gets, if any, is for the budget to say; it spends half of it at most here.
    Fidelity: lossy.

    Attributes:
        min_bytes: smaller weights are left alone.
        max_share: what both factors may have of the weight's elements, and so of its time.

    Before:
        (float[N,64] x) => (float[N,64] y) <float[64,64] w, float[64] b> {
            y = Gemm(x, w, b)
        }

    After:
        (float[N,64] x) => (float[N,64] y) <float[64,8] first, float[8,64] second, float[64] b> {
            u = MatMul(x, first)
            y = Gemm(u, second, b)
        }
    """

    min_bytes: int = 8192
    max_share: float = 0.66

    name = "factorize-low-rank"
    share: ClassVar[float] = 0.5

    def propose(self, graph: Graph, ctx: PassContext) -> Iterable[Proposal]:
        assert ctx.budget is not None
        layers = [node for node in graph.nodes if self._is_layer(node, ctx)]
        inputs = list(dict.fromkeys(node.operands[0] for node in layers))
        seen = dict(zip(inputs, ctx.budget.observe(graph, inputs) if inputs else []))
        for node in layers:
            yield from self._proposals(node, seen[node.operands[0]])

    def _is_layer(self, node: Node, ctx: PassContext) -> bool:
        weight, data = node.input(1), node.input(0)
        if node.op not in ("Gemm", "MatMul") or weight is None or weight.const is None:
            return False
        if data is None or weight.dtype != "float32" or weight.rank != 2:
            return False
        if data.const is not None or weight.const.nbytes < self.min_bytes:
            return False
        reason = _refusal(node, weight)
        if reason:
            ctx.stats.refuse("factorize", node, reason)
        return not reason

    def _proposals(self, node: Node, batches: list[np.ndarray]) -> Iterator[Proposal]:
        weight = matrix_of(node)
        data = np.concatenate([batch.reshape(-1, len(weight)) for batch in batches])
        if not np.isfinite(data).all():
            return
        left, values, right = whitened_svd(weight, data[:: max(1, len(data) // _ROWS)])
        ranks = ranks_of(values**2, weight.shape, _LOSSES, _STEP, self.max_share)
        for rank, loss, saved in ranks:
            factors = (left[:, :rank] * values[:rank], right[:rank])
            change = _into(node, [factor.astype(np.float32) for factor in factors])
            saves = saved * weight.itemsize
            name = node.output.name
            yield Proposal(name, f"rank {rank}", saves, loss, change, may_slow=True)


def _refusal(node: Node, weight: Value) -> str:
    if len(weight.uses) > 1:
        return "the weight is also read elsewhere, and would stay"
    if node.attr("transA", 0):
        return "its operand is transposed"
    (data, *_), users = node.inputs, node.output.users
    before = [data.producer] if data is not None and data.producer is not None else []
    after = users if len(users) == 1 and not node.output.is_graph_output else ()
    if any(_is_linear(other) for other in (*before, *after)):
        return "it is one of two factors already"
    return ""


def _is_linear(node: Node) -> bool:
    return node.op in ("Gemm", "MatMul") and node.const(1) is not None


def whitened_svd(weight: np.ndarray, data: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`left`, `values`, `right` with left * values @ right = weight, float64.

    Cut off at any rank it is the matrix that keeps data @ weight best: with C the root of the
    inputs' second moments, |data (W - V)| = |C'(W - V)|, and the best V of a rank follows from the
    singular value decomposition of C'W.
    """
    rows = data.astype(np.float64)
    moments = rows.T @ rows / max(1, len(rows))
    spread = np.trace(moments) / len(moments) or 1.0
    root = scipy.linalg.cholesky(moments + _RIDGE * spread * np.eye(len(moments)), lower=True)
    left, values, right = scipy.linalg.svd(root.T @ weight, full_matrices=False)
    return scipy.linalg.solve_triangular(root.T, left, lower=False), values, right


def _into(node: Node, factors: list[np.ndarray]) -> Callable[[Graph, Mapping[Value, Value]], None]:
    def apply(graph: Graph, values: Mapping[Value, Value]) -> None:
        layer = values[node.output].producer
        assert layer is not None
        rw = Rewriter(layer, [layer])
        first, second = map(rw.const, factors)
        thin = rw.op.MatMul(layer.inputs[0], first)
        attrs = {name: attr for name, attr in layer.attrs.items() if name != "transB"}
        replace(layer, [rw.insert(layer.op, [thin, second, *layer.inputs[2:]], attrs).output])

    return apply
