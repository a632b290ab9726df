"""Scans over few elements, as many as are known at build time, written out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Graph, Value
from graphopt.passes._unrolled import Unrolled
from graphopt.pipeline.base import Fidelity, Pass, PassContext


@dataclass(frozen=True)
class UnrollScans(Pass):
    """Writes out the iterations of a Scan over an axis of known, small size.

    Needs an axis of known size, at most `max_unroll`. Each iteration takes its element of the
    scanned values with a Gather; results collected per iteration are concatenated. Fidelity: exact.

    Attributes:
        max_unroll: how many iterations are written out at most.

    Before:
        (float[4] s, float[2,4] x) => (float[4] t) {
            t = Scan(s, x) <
                num_scan_inputs = 1,
                body = b (float[4] u, float[4] v) => (float[4] w) { w = Add(u, v) }
            >
        }

    After:
        (float[4] s, float[2,4] x) => (float[4] t) <int64 i = {0}, int64 j = {1}> {
            a = Gather(x, i)
            w = Add(s, a)
            b = Gather(x, j)
            t = Add(w, b)
        }
    """

    max_unroll: int = 32

    name = "unroll-scans"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        changed = False
        for node in graph.walk():
            if node.op != "Scan":
                continue
            values = node.operands
            count = node.attr("num_scan_inputs")
            unrolled = Unrolled(node, values[:-count])
            reason = _write_out(unrolled, values[-count:], self.max_unroll) or _finish(unrolled)
            if reason is not None:
                unrolled.take_back()
                ctx.stats.refuse("unroll_scan", node, reason)
                continue
            ctx.stats.hits["unroll_scan"] += 1
            changed = True
        return changed


def _write_out(unrolled: Unrolled, scanned: list[Value], limit: int) -> str | None:
    """Write out the iterations; returns why that is not possible."""
    node, graph = unrolled.node, unrolled.graph
    axes = node.attr("scan_input_axes") or [0] * len(scanned)
    backwards = node.attr("scan_input_directions") or [0] * len(scanned)
    length = scanned[0].shape[axes[0]] if scanned[0].shape is not None else None
    if not isinstance(length, int):
        return "its length is known only at run time"
    if length > limit:
        return f"it runs more than {limit} times"
    for iteration in range(length):
        elements = []
        for value, axis, reverse in zip(scanned, axes, backwards):
            position = np.array(length - 1 - iteration if reverse else iteration, np.int64)
            elements.append(unrolled.insert("Gather", [value, graph.constant(position)], axis=axis))
        unrolled.iterate(node.attrs["body"], [*unrolled.carried, *elements])
    return None


def _finish(unrolled: Unrolled) -> str | None:
    node = unrolled.node
    count = len(node.outputs) - len(unrolled.carried)
    axes = node.attr("scan_output_axes") or [0] * count
    return unrolled.finish(axes, node.attr("scan_output_directions") or ())
