"""Weights of which two in four are zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.passes._linear import matrix_of, turned
from graphopt.passes._reconstruction import inverse_root, with_damping
from graphopt.pipeline.base import LossyPass, PassContext, Proposal

_ROWS = 8192  # of calibration data that a layer is fitted on


@dataclass(frozen=True)
class PruneTwoOfFour(LossyPass):
    """Sets two of every four weights of an output to zero, and adjusts the others to make up.

    Needs an error budget, and a constant matrix with a multiple of four inputs. Which two go, and
    what the others become, follows from the inputs that the layer sees on calibration data (Frantar
    and Alistarh, "SparseGPT", 2023). Only sparse tensor cores skip these zeros: the model is no
    smaller, and no faster on a CPU or with the kernels here, so that the pass runs only where
    `--passes` names it, for engines such as TensorRT. Fidelity: lossy.

    Attributes:
        min_elements: smaller weights are left alone.

    Before:
        (float[N,64] x) => (float[N,64] y) <float[64,64] w, float[64] b> {
            y = Gemm(x, w, b)
        }

    After:
        (float[N,64] x) => (float[N,64] y) <float[64,64] sparse, float[64] b> {
            y = Gemm(x, sparse, b)
        }
    """

    min_elements: int = 1024

    name = "prune-two-of-four"

    def propose(self, graph: Graph, ctx: PassContext) -> Iterable[Proposal]:
        assert ctx.budget is not None
        layers = [node for node in graph.nodes if self._is_layer(node, ctx)]
        inputs = list(dict.fromkeys(node.operands[0] for node in layers))
        seen = dict(zip(inputs, ctx.budget.observe(graph, inputs) if inputs else []))
        for node in layers:
            yield from _proposals(node, seen[node.operands[0]])

    def _is_layer(self, node: Node, ctx: PassContext) -> bool:
        weight, data = node.const(1), node.input(0)
        if node.op not in ("Gemm", "MatMul") or weight is None or weight.ndim != 2:
            return False
        if weight.dtype != np.float32 or data is None or data.const is not None:
            return False
        if weight.size < self.min_elements or node.attr("transA", 0):
            return False
        reason = ""
        if len(matrix_of(node)) % 4:
            reason = "its inputs are no multiple of four"
        elif len(node.operands[1].uses) > 1:
            reason = "the weight is also read elsewhere"
        elif is_sparse(matrix_of(node)):
            reason = "two of four are zero already"
        if reason:
            ctx.stats.refuse("prune", node, reason)
        return not reason


def is_sparse(matrix: np.ndarray) -> bool:
    """True if at most two of four inputs [inputs, outputs] count, everywhere."""
    groups = matrix.reshape(-1, 4, matrix.shape[1])
    return bool((np.count_nonzero(groups, axis=1) <= 2).all())


def _proposals(node: Node, batches: list[np.ndarray]) -> Iterator[Proposal]:
    matrix = matrix_of(node)
    data = np.concatenate([batch.reshape(-1, len(matrix)) for batch in batches])
    data = data[:: max(1, len(data) // _ROWS)].astype(np.float64)
    if not np.isfinite(data).all() or not np.isfinite(matrix).all():
        return
    moments = with_damping(data.T @ data / max(1, len(data)))
    sparse = thinned(matrix, moments)
    off = sparse - matrix
    lost = np.sum(off * (moments @ off)) / (np.sum(matrix * (moments @ matrix)) or 1.0)
    yield Proposal(node.output.name, "2 of 4", 0, float(lost) ** 0.5, _change(node, sparse))


def thinned(matrix: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """`matrix` [inputs, outputs] with two of each four inputs zero, for inputs of these moments."""
    root, left = inverse_root(moments), matrix.astype(np.float64)
    for start in range(0, len(matrix), 4):
        costs = np.square(left[start : start + 4] / np.diag(root)[start : start + 4, None])
        goes = np.argsort(np.argsort(costs, axis=0, kind="stable"), axis=0) < 2
        for row in range(start, start + 4):
            lost = np.where(goes[row - start], left[row], 0.0) / root[row, row]
            left[row + 1 :] -= np.outer(root[row, row + 1 :], lost)
            left[row] = np.where(goes[row - start], 0.0, left[row])
    return left.astype(np.float32)


def _change(node: Node, matrix: np.ndarray) -> Callable[[Graph, Mapping[Value, Value]], None]:
    stored = np.ascontiguousarray(turned(node, matrix))

    def apply(graph: Graph, values: Mapping[Value, Value]) -> None:
        layer = values[node.output].producer
        assert layer is not None
        graph.set_input(layer, 1, graph.constant(stored))

    return apply
