"""Loops and Scans that carry no more than they have to."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from graphopt.ir.copying import copy_into
from graphopt.ir.graph import Graph, Node, Value
from graphopt.passes._inline import replace
from graphopt.passes.cse import Cse
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite.rewriter import Rewriter


class TrimLoops(Pass):
    """Takes from what a Loop or Scan carries what no step changes and what is there twice.

    Needs a value that steps hand on as it is, which the body reads from around the loop then, or
    two that start as the same value and that each step computes alike. tf2onnx carries all weights
    of a recurrent layer, and Keras its last output beside the state. Fidelity: exact.

    Before:
        (float[N,4] x, float[4,4] w, int64 n) => (float[N,4] y) <bool yes = {1}> {
            h, same = Loop(n, yes, x, w) <
                body = b (int64 i, bool c, float[N,4] u, float[4,4] k)
                    => (bool c, float[N,4] v, float[4,4] k) {
                    v = MatMul(u, k)
                }
            >
            y = MatMul(h, same)
        }

    After:
        (float[N,4] x, float[4,4] w, int64 n) => (float[N,4] y) <bool yes = {1}> {
            h = Loop(n, yes, x) <
                body = b (int64 i, bool c, float[N,4] u) => (bool c, float[N,4] v) {
                    v = MatMul(u, w)
                }
            >
            y = MatMul(h, w)
        }
    """

    name = "trim-loops"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        changed = False
        for node in graph.walk():
            if node.op not in ("Loop", "Scan"):
                continue
            carried = _carried(node)
            constant = [c for c in carried if c.after is c.value]
            twins = _twins(node, [c for c in carried if c not in constant])
            if constant or twins:
                ctx.stats.hits["unchanged"] += len(constant)
                ctx.stats.hits["twice"] += len(twins)
                _trim(node, constant, twins)
                changed = True
        return changed


class _Carried:
    """What a loop carries at a place: in its body before and after a step, and at first."""

    def __init__(self, loop: Node, index: int, shift: int) -> None:
        body: Graph = loop.attrs["body"]
        start = loop.inputs[index]
        assert start is not None
        self.place, self.start = index, start
        self.out = index - shift  # among the outputs of the body
        self.value, self.after = body.inputs[index], body.outputs[self.out]


def _carried(loop: Node) -> list[_Carried]:
    if loop.op == "Loop":
        places, shift = range(2, len(loop.inputs)), 1
    else:
        places, shift = range(len(loop.inputs) - int(loop.attr("num_scan_inputs"))), 0
    return [_Carried(loop, k, shift) for k in places if loop.inputs[k] is not None]


def _twins(loop: Node, carried: list[_Carried]) -> dict[_Carried, _Carried]:
    """What is carried and always equal to something carried before it, and that.

    Those that start alike are taken to be equal until a step that is given equal ones computes
    two values from them (as in the minimization of automata).
    """
    groups = _alike([carried], lambda c: (c.start, c.value.type))
    while groups:
        body = Graph(loop.attrs["body"].name, parent=loop.graph)
        values: dict[Value, Value] = {}
        copy_into(loop.attrs["body"], body, values)
        for first, *others in groups:
            for other in others:
                body.replace_uses(values[other.value], values[first.value])
        Cse().run(body, PassContext())
        after = body.outputs
        body.clear()
        parted = _alike(groups, lambda c: after[c.out])  # noqa: B023 - called at once
        if parted == groups:
            return {other: first for first, *others in groups for other in others}
        groups = parted
    return {}


def _alike(
    groups: list[list[_Carried]], key: Callable[[_Carried], Hashable]
) -> list[list[_Carried]]:
    """Those of each group that share a key, where there are several."""
    parts: list[list[_Carried]] = []
    for group in groups:
        by_key: dict[Hashable, list[_Carried]] = {}
        for one in group:
            by_key.setdefault(key(one), []).append(one)
        parts += (part for part in by_key.values() if len(part) > 1)
    return parts


def _trim(loop: Node, constant: list[_Carried], twins: dict[_Carried, _Carried]) -> None:
    """Replace the loop by one that does not carry `constant`, nor `twins` (the keys)."""
    graph, old = loop.graph, loop.attrs["body"]
    assert graph is not None
    body = Graph(old.name, parent=graph)
    values: dict[Value, Value] = {}
    copy_into(old, body, values)
    for c in constant:
        body.replace_uses(values[c.value], c.start)
    for c, first in twins.items():
        body.replace_uses(values[c.value], values[first.value])
    gone = {*constant, *twins}
    ins, outs = {c.place for c in gone}, {c.out for c in gone}
    kept = [k for k in range(len(old.outputs)) if k not in outs]
    body.set_outputs([body.outputs[k] for k in kept], [old.output_names[k] for k in kept])
    body.inputs = [value for k, value in enumerate(body.inputs) if k not in ins]
    inputs = [value for k, value in enumerate(loop.inputs) if k not in ins]
    attrs = {**loop.attrs, "body": body}
    shift = len(old.outputs) - len(loop.outputs)
    made = Rewriter(loop, [loop]).insert(loop.op, inputs, attrs, outputs=len(kept) - shift)
    results: list[Value | None] = [None] * len(loop.outputs)
    for k, result in zip(kept[shift:], made.outputs):
        results[k - shift] = result
    for c in constant:
        results[c.out - shift] = c.start
    for c, first in twins.items():
        results[c.out - shift] = results[first.out - shift]
    replace(loop, results)
