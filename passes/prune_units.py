"""Hidden units that the layers after them can do without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.linalg import lapack, solve

from graphopt.ir.graph import Graph, Node, Value
from graphopt.passes._hidden_layer import HiddenLayer
from graphopt.pipeline.base import LossyPass, PassContext, Proposal

_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8)  # of the units, as offers to the budget
_STEP = 16  # units are kept in multiples: kernels compute no fewer columns at once
_WORST = 0.3  # a larger loss of a layer's outputs is not worth a trial
_ROWS = 8192  # of calibration data that a layer is fitted on
_RIDGE = 1e-6  # of the mean variance


@dataclass(frozen=True)
class PruneUnits(LossyPass):
    """Removes hidden units, and lets the next layer make up for them by least squares.

    Needs an error budget, and units that only the next layer reads. Kept are the units that move
    the next layer's outputs most on calibration data. What the others would have added is predicted
    from those that stay, and goes into the next layer's weights and bias (as in He et al., "Channel
    pruning", 2017). Units that never fire, or that others tell, cost nothing to remove. How many go
    is for the budget to say, of which a quarter at most is spent. Fidelity: lossy.

    Attributes:
        min_units: layers with fewer hidden units are left alone.

    Before:
        (float[N,8] x) => (float[N,4] y) <float[8,64] w, float[64] b, float[64,4] v, float[4] c> {
            h = Gemm(x, w, b)
            r = Relu(h)
            y = Gemm(r, v, c)
        }

    After:
        (float[N,8] x) => (float[N,4] y) <float[8,16] w, float[16] b, float[16,4] v, float[4] c> {
            h = Gemm(x, w, b)
            r = Relu(h)
            y = Gemm(r, v, c)
        }
    """

    min_units: int = 32

    name = "prune-units"
    share: ClassVar[float] = 0.25

    def propose(self, graph: Graph, ctx: PassContext) -> Iterable[Proposal]:
        assert ctx.budget is not None
        layers = [found for node in graph.nodes if (found := self._layer(node, ctx)) is not None]
        hidden = [layer.hidden for layer in layers]
        seen = ctx.budget.observe(graph, hidden) if hidden else []
        for layer, batches in zip(layers, seen):
            yield from _proposals(
                layer, np.concatenate([b.reshape(-1, layer.units) for b in batches])
            )

    def _layer(self, node: Node, ctx: PassContext) -> HiddenLayer | None:
        layer = HiddenLayer.before(node)
        if isinstance(layer, str):
            ctx.stats.refuse("prune", node, layer)
            return None
        return layer if layer is not None and layer.units >= self.min_units else None


def _proposals(layer: HiddenLayer, data: np.ndarray) -> Iterator[Proposal]:
    if not np.isfinite(data).all():
        return
    fit = LeastSquares.of(data[:: max(1, len(data) // _ROWS)], layer.outgoing)
    counts = {-(-int(layer.units * share) // _STEP) * _STEP for share in _SHARES}
    counts |= {-(-fit.used // _STEP) * _STEP}
    for count in sorted(counts):
        if not 0 < count < layer.units:
            continue
        kept, mixing, offset, error = fit.keep(count)
        if error <= _WORST:
            saves = (layer.units - count) * layer.bytes_of_unit
            change = _pruned(layer, kept, mixing, offset)
            yield Proposal(layer.hidden.name, f"{count} units", saves, error, change)


@dataclass(frozen=True)
class LeastSquares:
    """What hidden units contribute to the next layer, and to each other.

    Attributes:
        outgoing: the next layer's weight [units, outputs].
        mean, covariance: of the units.
        order: the units, each the one that moves the outputs most by what those before it do not
            tell (a pivoted Cholesky factorization finds them).
        used: how many it takes to tell the others exactly.
    """

    outgoing: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    order: np.ndarray
    used: int

    @staticmethod
    def of(data: np.ndarray, outgoing: np.ndarray) -> LeastSquares:
        """For units as seen on calibration data [rows, units]."""
        rows, weight = data.astype(np.float64), outgoing.astype(np.float64)
        mean = rows.mean(axis=0)
        centered = rows - mean
        covariance = centered.T @ centered / max(1, len(rows))
        reach = np.sqrt(np.square(weight).sum(axis=1))
        moved = covariance * reach * reach[:, None]
        _, pivots, used, _ = lapack.dpstrf(moved, tol=1e-8 * float(np.diag(moved).max(initial=0)))
        return LeastSquares(weight, mean, covariance, pivots - 1, int(used))

    def keep(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """`kept`, `mixing` [count, units], `offset` [units] and the loss.

        All units are about kept units @ mixing + offset. The loss is the root mean square of what
        the next layer's outputs miss, relative to how they vary.
        """
        kept = np.sort(self.order[:count])
        within, across = self.covariance[np.ix_(kept, kept)], self.covariance[kept]
        ridge = _RIDGE * (np.trace(within) / count or 1.0) * np.eye(count)
        mixing = solve(within + ridge, across, assume_a="pos")
        mixing[:, kept] = np.eye(count)
        offset = self.mean - self.mean[kept] @ mixing
        offset[kept] = 0
        missed = self.outgoing.copy()
        missed[kept] = 0
        told = mixing @ self.outgoing - self.outgoing[kept]
        varies = np.sum(self.outgoing * (self.covariance @ self.outgoing))
        left = np.sum(missed * (self.covariance @ missed))
        left += np.sum(told * (within @ told)) - 2 * np.sum(told * (across @ missed))
        return kept, mixing, offset, float(np.sqrt(max(left, 0.0) / varies)) if varies > 0 else 0.0


def _pruned(
    layer: HiddenLayer, kept: np.ndarray, mixing: np.ndarray, offset: np.ndarray
) -> Callable[[Graph, MutableMapping[Value, Value]], None]:
    def apply(graph: Graph, values: MutableMapping[Value, Value]) -> None:
        second = values[layer.second.output].producer
        found = HiddenLayer.before(second) if second is not None else None
        assert isinstance(found, HiddenLayer)
        # The layers on either side may be pruned too: they find these under the old names.
        values[layer.first.output], values[layer.second.output] = found.replace(
            kept, mixing, offset
        )

    return apply
