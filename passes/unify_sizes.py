"""One name for sizes that must be equal."""

from __future__ import annotations

from graphopt.ir import sizes
from graphopt.ir.control import narrow_carried
from graphopt.ir.graph import Graph
from graphopt.pipeline.base import Fidelity, Pass, PassContext


class UnifySizes(Pass):
    """Gives sizes of different inputs one name where an op requires them to be equal.

    Needs an op that refuses other sizes, or whose result is unknown unless sizes that the file
    calls alike are equal. Models are read that way already; after a rewrite more may be known, for
    example that there are as many bags as rows of dense features, or that the step of a loop keeps
    a shape. Only names of sizes change.
    Fidelity: exact.

    Before:
        (float[N,2] a, float[M,2] b) => (float[N,4] y) {
            y = Concat<axis=1>(a, b)
        }

    After:
        (float[N,2] a, float[N,2] b) => (float[N,4] y) {
            y = Concat<axis=1>(a, b)
        }
    """

    name = "unify-sizes"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        renamed = sizes.unify_sizes(graph)
        ctx.stats.hits.update(f"{old} = {new}" for old, new in renamed.items())
        narrowed = [node for node in graph.walk() if narrow_carried(node)]
        ctx.stats.hits.update("narrow_carried" for _ in narrowed)
        return bool(renamed or narrowed)
