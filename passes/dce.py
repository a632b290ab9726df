"""Dead code elimination."""

from __future__ import annotations

from graphopt.ir.graph import Graph, Node
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite.rewriter import erase_dead


class Dce(Pass):
    """Erases nodes whose results nobody reads, and then what only they read.

    Needs nothing. Works inside of subgraphs too. Graph inputs stay: they are the user's. Fidelity:
    exact.

    Before:
        (float[N,4] x) => (float[N,4] y) {
            a = Relu(x)
            b = Exp(a)
            c = Neg(b)
            y = Sigmoid(a)
        }

    After:
        (float[N,4] x) => (float[N,4] y) {
            a = Relu(x)
            y = Sigmoid(a)
        }
    """

    name = "dce"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        nodes: list[Node] = list(graph.walk())
        erased = erase_dead(graph, nodes)
        if erased:
            ctx.stats.hits["erased"] += erased
        return erased > 0
