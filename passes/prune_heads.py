"""Attention heads that the layer after them can do without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.passes._heads import HeadLayers
from graphopt.passes._least_squares import LeastSquares
from graphopt.pipeline.base import LossyPass, PassContext, Proposal

_WORST = 0.3  # a larger loss of a layer's outputs is not worth a trial


@dataclass(frozen=True)
class PruneHeads(LossyPass):
    """Removes attention heads, and adjusts the next layer by least squares to make up for them.

    Needs an error budget, and heads between layers with constant weights. Again and again the head
    goes without which the next layer's outputs lose least on calibration data, once what the head
    would have added is predicted from the heads that stay; that goes into the next layer's weights
    and bias. Its columns of queries, keys and values go too (heads that can be spared are found in
    Michel et al., "Are sixteen heads really better than one?", 2019; the repair is that of
    `prune-units`). Heads that are copies, or that the next layer ignores, cost nothing to remove.
    How many go is for the budget to say, of which an eighth at most is spent. Fidelity: lossy.

    Before:
        (float[N,5,3] x) => (float[N,5,2] y)
        <float[3,12] w, float[12] b, float[4,2] v = {1, 2, 3, 4, 0, 0, 0, 0}> {
            p = MatMul(x, w)
            h = Add(p, b)
            a = graphopt.Attention<columns=[0, 4, 8], dim=2, heads=2, scale=0.7>(h, h, h)
            y = MatMul(a, v)
        }

    After:
        (float[N,5,3] x) => (float[N,5,2] y)
        <float[3,6] w, float[6] b, float[2,2] v, float[2] shift> {
            p = MatMul(x, w)
            h = Add(p, b)
            a = graphopt.Attention<columns=[0, 2, 4], dim=2, heads=1, scale=0.7>(h, h, h)
            m = MatMul(a, v)
            y = Add(m, shift)
        }
    """

    name = "prune-heads"
    share: ClassVar[float] = 0.125

    def propose(self, graph: Graph, ctx: PassContext) -> Iterable[Proposal]:
        assert ctx.budget is not None
        found = [layers for node in graph.nodes if (layers := _layers(node, ctx)) is not None]
        seen = ctx.budget.observe(graph, [layers.hidden for layers in found]) if found else []
        for layers, batches in zip(found, seen):
            fit = LeastSquares.seen(batches, layers.outgoing)
            if fit is not None:
                yield from _proposals(layers, fit)


def _layers(node: Node, ctx: PassContext) -> HeadLayers | None:
    if node.op != "graphopt::Attention" or node.attr("heads") == 1:
        return None
    found = HeadLayers.around(node)
    if isinstance(found, str):
        ctx.stats.refuse("prune", node, found)
        return None
    return found


def _proposals(layers: HeadLayers, fit: LeastSquares) -> Iterator[Proposal]:
    heads = list(range(layers.what.heads))
    before = layers.bytes_with(heads)
    while len(heads) > 1:
        choices = [[head for head in heads if head != gone] for gone in heads]
        fits = [fit.keep(layers.columns_of(choice)) for choice in choices]
        best = min(range(len(fits)), key=lambda k: fits[k][2])
        heads, (mixing, offset, error) = choices[best], fits[best]
        if error > _WORST:
            return
        saves = before - layers.bytes_with(heads)
        change = _pruned(layers.attention.output, heads, mixing, offset)
        site = layers.attention.output.name
        yield Proposal(site, f"{len(heads)} heads", saves, error, change)


def _pruned(
    output: Value, heads: Sequence[int], mixing: np.ndarray, offset: np.ndarray
) -> Callable[[Graph, MutableMapping[Value, Value]], None]:
    def apply(graph: Graph, values: MutableMapping[Value, Value]) -> None:
        attention = values[output].producer
        # The layers may by now be others, where one reads an attention that was pruned too.
        found = HeadLayers.around(attention) if attention is not None else None
        assert isinstance(found, HeadLayers)
        values[output] = found.replace(heads, mixing, offset)

    return apply
