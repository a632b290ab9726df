"""Loop and Scan with few iterations, known at build time, written out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import TensorType, dtype_to_numpy
from graphopt.passes._evaluate import constant_of
from graphopt.passes._inline import inline, replace, take_back
from graphopt.passes._shapes import ints_of
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite.rewriter import erase_dead

_EMPTY = "it never runs, and the shape of its empty result is not known"


@dataclass(frozen=True)
class UnrollLoops(Pass):
    """Writes out the iterations of a Loop or Scan that runs a known, small number of times.

    The trip count may be given, or follow from a condition that counts: iterations are written out
    one by one, and as long as the condition of the next one is known. Results collected per
    iteration are concatenated. Fidelity: exact.

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
            if node.op not in ("Loop", "Scan"):
                continue
            inserted: list[Node] = []
            unroll = _unroll_loop if node.op == "Loop" else _unroll_scan
            results = unroll(node, self.max_unroll, inserted)
            if isinstance(results, str):
                take_back(inserted)
                ctx.stats.refuse(unroll.__name__[1:], node, results)
                continue
            replace(node, results)
            erase_dead(graph, inserted)
            ctx.stats.hits[unroll.__name__[1:]] += 1
            changed = True
        return changed


def _unroll_loop(node: Node, limit: int, inserted: list[Node]) -> list[Value | None] | str:
    graph, body = node.graph, node.attrs["body"]
    assert graph is not None
    trips = ints_of(node.input(0))
    if trips is None and (node.input(0) is not None or _never_stops(body)):
        return "its trip count is known only at run time"
    going = graph.constant(np.array(True)) if node.input(1) is None else node.inputs[1]
    carried, collected = list(node.inputs[2:]), []
    for iteration in range(limit + 1):
        known = constant_of(going)
        if known is None:
            return "its condition is known only at run time"
        if not known or (trips is not None and iteration >= trips[0]):
            break
        if iteration == limit:
            return f"it runs more than {limit} times"
        counter = graph.constant(np.array(iteration, np.int64))
        going, *results = inline(body, [counter, going, *carried], node, inserted)
        carried, scanned = results[: len(carried)], results[len(carried) :]
        collected.append(scanned)
    return _with_collected(node, list(carried), collected, [0] * len(node.outputs), inserted)


def _never_stops(body: Graph) -> bool:
    condition = body.outputs[0]
    return condition is body.inputs[1] or ints_of(condition) == [1]


def _unroll_scan(node: Node, limit: int, inserted: list[Node]) -> list[Value | None] | str:
    graph, body = node.graph, node.attrs["body"]
    assert graph is not None
    count = node.attr("num_scan_inputs")
    states, scanned = list(node.inputs[:-count]), list(node.inputs[-count:])
    axes = node.attr("scan_input_axes") or [0] * count
    reverse = node.attr("scan_input_directions") or [0] * count
    length = scanned[0].tensor.dims[axes[0]] if scanned[0].shape is not None else None
    if not isinstance(length, int):
        return "its length is known only at run time"
    if length > limit:
        return f"it runs more than {limit} times"
    collected = []
    for iteration in range(length):
        slices = []
        for value, axis, backwards in zip(scanned, axes, reverse):
            position = length - 1 - iteration if backwards else iteration
            index = graph.constant(np.array(position, np.int64))
            slices.append(_insert(node, inserted, "Gather", [value, index], axis=axis))
        results = inline(body, [*states, *slices], node, inserted)
        states = results[: len(states)]
        collected.append(results[len(states) :])
    outputs = len(node.outputs) - len(states)
    for k, backwards in enumerate(node.attr("scan_output_directions") or [0] * outputs):
        if backwards:
            column = [row[k] for row in collected]
            for row, value in zip(collected, column[::-1]):
                row[k] = value
    output_axes = node.attr("scan_output_axes") or [0] * outputs
    return _with_collected(node, states, collected, output_axes, inserted)


def _with_collected(
    node: Node,
    final: list[Value | None],
    collected: list[list[Value]],
    axes: list[int],
    inserted: list[Node],
) -> list[Value | None] | str:
    """The outputs: final values of what is carried, then what each iteration gave, stacked."""
    graph = node.graph
    assert graph is not None
    results = list(final)
    for k, output in enumerate(node.outputs[len(final) :]):
        axis, type_ = axes[k], output.type
        if not output.uses:
            results.append(None)
        elif collected:
            at = graph.constant(np.array([axis], np.int64))
            rows = [_insert(node, inserted, "Unsqueeze", [row[k], at]) for row in collected]
            results.append(_insert(node, inserted, "Concat", rows, axis=axis))
        elif isinstance(type_, TensorType) and type_.shape is not None:
            shape = [0 if at == axis else dim for at, dim in enumerate(type_.shape)]
            if not all(isinstance(dim, int) for dim in shape):
                return _EMPTY
            results.append(graph.constant(np.zeros(shape, dtype_to_numpy(type_.dtype))))
        else:
            return _EMPTY
    return results


def _insert(
    node: Node, inserted: list[Node], op_type: str, inputs: list[Value], **attrs: int
) -> Value:
    assert node.graph is not None
    made = node.graph.insert(op_type, inputs, attrs, before=node, origin=node.origin)
    inserted.append(made)
    return made.output
