"""Loops with few iterations, known at build time, written out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Graph, Value
from graphopt.passes._evaluate import constant_of
from graphopt.passes._shapes import ints_of
from graphopt.passes._unrolled import Unrolled
from graphopt.pipeline.base import Fidelity, Pass, PassContext


@dataclass(frozen=True)
class UnrollLoops(Pass):
    """Writes out the iterations of a Loop that runs a known, small number of times.

    Needs a number of iterations that is known and at most `max_unroll`. The trip count may be
    given, or follow from a condition that counts: iterations are written out one by one, as long as
    the condition of the next one is known. Results collected per iteration are concatenated.
    Fidelity: exact.

    Attributes:
        max_unroll: how many iterations are written out at most.

    Before:
        (float[N,4] x) => (float[N,4] y) <int64 trips = {2}, bool yes = {1}> {
            y = Loop(trips, yes, x) <
                body = b (int64 i, bool c, float[N,4] u) => (bool c2, float[N,4] v) {
                    c2 = Identity(c)
                    v = Relu(u)
                }
            >
        }

    After:
        (float[N,4] x) => (float[N,4] y) {
            a = Relu(x)
            y = Relu(a)
        }
    """

    max_unroll: int = 32

    name = "unroll-loops"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        changed = False
        for node in graph.walk():
            if node.op != "Loop":
                continue
            carried = [value for value in node.inputs[2:] if value is not None]
            unrolled = Unrolled(node, carried)
            reason = _write_out(unrolled, self.max_unroll) or unrolled.finish(
                [0] * len(node.outputs)
            )
            if reason is not None:
                unrolled.take_back()
                ctx.stats.refuse("unroll_loop", node, reason)
                continue
            ctx.stats.hits["unroll_loop"] += 1
            changed = True
        return changed


def _write_out(unrolled: Unrolled, limit: int) -> str | None:
    """Write out the iterations; returns why that is not possible."""
    node, graph = unrolled.node, unrolled.graph
    body = node.attrs["body"]
    trips = ints_of(node.input(0))
    if trips is None and (node.input(0) is not None or _never_stops(body)):
        return "its trip count is known only at run time"
    going = node.input(1) or graph.constant(np.array(True))
    for iteration in range(limit + 1):
        known = constant_of(going)
        if known is None:
            return "its condition is known only at run time"
        if not known or (trips is not None and iteration >= trips[0]):
            return None
        if iteration < limit:
            counter = graph.constant(np.array(iteration, np.int64))
            (going,) = unrolled.iterate(body, [counter, going, *unrolled.carried], skip=1)
    return f"it runs more than {limit} times"


def _never_stops(body: Graph) -> bool:
    condition: Value = body.outputs[0]
    return condition is body.inputs[1] or ints_of(condition) == [1]
