"""Hidden units that the layers after them can do without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.passes._hidden_layer import HiddenLayer
from graphopt.passes._least_squares import LeastSquares
from graphopt.pipeline.base import LossyPass, PassContext, Proposal

_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8)  # of the units, as offers to the budget
_STEP = 16  # units are kept in multiples: kernels compute no fewer columns at once
_WORST = 0.3  # a larger loss of a layer's outputs is not worth a trial


@dataclass(frozen=True)
class PruneUnits(LossyPass):
    """Removes hidden units, and adjusts the next layer by least squares to make up for them.

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
            fit = LeastSquares.seen(batches, layer.outgoing)
            if fit is not None:
                yield from _proposals(layer, fit)

    def _layer(self, node: Node, ctx: PassContext) -> HiddenLayer | None:
        layer = HiddenLayer.before(node)
        if isinstance(layer, str):
            ctx.stats.refuse("prune", node, layer)
            return None
        return layer if layer is not None and layer.units >= self.min_units else None


def _proposals(layer: HiddenLayer, fit: LeastSquares) -> Iterator[Proposal]:
    counts = {-(-int(layer.units * share) // _STEP) * _STEP for share in _SHARES}
    counts |= {-(-fit.used // _STEP) * _STEP}
    for count in sorted(counts):
        if not 0 < count < layer.units:
            continue
        kept = np.sort(fit.order[:count])
        mixing, offset, error = fit.keep(kept)
        if error <= _WORST:
            saves = (layer.units - count) * layer.bytes_of_unit
            change = _pruned(layer, kept, mixing, offset)
            yield Proposal(layer.hidden.name, f"{count} units", saves, error, change)


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
