"""If with a known condition."""

from __future__ import annotations

from graphopt.ir.graph import Graph
from graphopt.passes._inline import inline, replace
from graphopt.passes._shapes import ints_of
from graphopt.pipeline.base import Fidelity, Pass, PassContext


class InlineSubgraphs(Pass):
    """Puts the branch that is taken in the place of an If whose condition is known.

    Needs a condition that is a constant or shape arithmetic whose result is the same for every
    size. Fidelity: exact.

    Before:
        (float[N,4] x) => (float[N,4] y) <bool yes = {1}> {
            y = If(yes) <
                then_branch = a () => (float[N,4] u) { u = Relu(x) },
                else_branch = b () => (float[N,4] v) { v = Neg(x) }
            >
        }

    After:
        (float[N,4] x) => (float[N,4] y) {
            y = Relu(x)
        }
    """

    name = "inline-subgraphs"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        changed = False
        for node in graph.walk():
            if node.op != "If":
                continue
            condition = ints_of(node.inputs[0])
            if not condition:
                ctx.stats.refuse("inline_if", node, "its condition is known only at run time")
                continue
            branch = node.attrs["then_branch" if condition[0] else "else_branch"]
            replace(node, inline(branch, (), node, []))
            ctx.stats.hits["inline_if"] += 1
            changed = True
        return changed
