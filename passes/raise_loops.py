"""Loops over a sequence whose body is the step of a GRU, as one op."""

from __future__ import annotations

import numpy as np

from graphopt.ir.control import loop_trip_count
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ops import gru
from graphopt.passes._counters import first_count
from graphopt.passes._gru_step import Step, gru_step
from graphopt.passes._inline import replace
from graphopt.passes._step_reader import is_zero
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite.rewriter import Rewriter

RULE = "loop_to_gru"


class RaiseLoops(Pass):
    """Replaces a Loop whose body is the step of a GRU by a `GRU`.

    Needs as many steps as the sequence has positions, which a step takes one after the other, and
    no results but states. GPUs take loops of any length so; CPUs are as fast without. Fidelity:
    reassociates.

    Before:
        (float[N,T,3] s, float[N,4] h) => (float[N,4] y)
        <float[3,12] w, float[4,12] r, float[12] b, float one = {1}, bool yes = {1}> {
            size = Shape<start=1, end=2>(s)
            steps = Squeeze(size)
            y = Loop(steps, yes, h) <
                body = g (int64 i, bool c, float[N,4] u) => (bool c, float[N,4] v) {
                    x = Gather<axis=1>(s, i)
                    a = MatMul(x, w)
                    k = MatMul(u, r)
                    d = Add(k, b)
                    az, ar, an = Split<axis=1, num_outputs=3>(a)
                    dz, dr, dn = Split<axis=1, num_outputs=3>(d)
                    pz = Add(az, dz)
                    z = Sigmoid(pz)
                    pr = Add(ar, dr)
                    t = Sigmoid(pr)
                    q = Mul(t, dn)
                    pn = Add(an, q)
                    n = Tanh(pn)
                    m = Sub(one, z)
                    e = Mul(m, n)
                    f = Mul(z, u)
                    v = Add(e, f)
                }
            >
        }

    After:
        (float[N,T,3] s, float[N,4] h) => (float[N,4] y)
        <float[1,12,3] w, float[1,12,4] r, float[1,24] b, int64[1] first = {0}> {
            x = Transpose<perm=[1, 0, 2]>(s)
            h0 = Unsqueeze(h, first)
            last = graphopt.GRU<hidden_size=4, linear_before_reset=1>(x, w, r, b, h0)
            y = Squeeze(last, first)
        }
    """

    name = "raise-loops"
    fidelity = Fidelity.REASSOCIATES

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        changed = False
        for node in graph.walk():
            if node.op != "Loop":
                continue
            reason = _raise(node)
            if reason is None:
                ctx.stats.hits[RULE] += 1
                changed = True
            else:
                ctx.stats.refuse(RULE, node, reason)
        return changed


def _raise(loop: Node) -> str | None:
    """Put an op in the place of the loop; returns why not, having changed nothing."""
    body: Graph = loop.attrs["body"]
    count = len(loop.inputs) - 2
    found = None
    results: list[Value | None] = []
    for value, given, after, out in zip(
        body.inputs[2:], loop.inputs[2:], body.outputs[1:], loop.outputs
    ):
        results.append(given if after is value else None)
        step = gru_step(after) if after is not value else None
        if step is not None and step.h is value and step.mask is None and step.gate is None:
            if found is not None:
                return "it holds several GRUs"
            if given is None or given.type != after.type:
                return "its first state has another shape than those that follow"
            found = step, given
        elif after is not value and out.uses:
            return "it computes more than the states of one GRU"
    if found is None:
        return "no value that it carries is the state of a GRU"
    step, start = found
    if any(value is not step.new for value in body.outputs[1 + count :]):
        return "what it stacks is not its states"
    sequence = _sequence(loop, step.x)
    if sequence is None:
        return "its steps do not take all positions of one sequence in order"
    rw = Rewriter(loop, [loop, *body.nodes])
    every, last = _emit(rw, loop, step, start, *sequence)
    for place, after in enumerate(body.outputs[1:]):
        if after is step.new:
            results[place : place + 1] = [last if place < count else every]
    replace(loop, results)
    return None


def _sequence(loop: Node, x: Value) -> tuple[Value, int] | None:
    """The sequence whose positions steps take, and the axis along which they do."""
    body, node = loop.attrs["body"], x.producer
    if node is None or node.op != "Gather" or node.graph is not body:
        return None
    source, place = node.inputs
    axis = node.attr("axis")
    assert source is not None and place is not None
    if source in body.inputs[2:]:
        at = body.inputs.index(source)
        given = loop.inputs[at]
        if given is None or body.outputs[at - 1] is not source:
            return None
        source = given
    inside = source.producer is not None and source.producer.graph is body
    if inside or source.rank != 3 or axis not in (0, 1) or place.rank != 0:
        return None
    whole = first_count(loop, place) == 0 and loop_trip_count(loop) == source.tensor.dims[axis]
    return (source, axis) if whole else None


def _emit(
    rw: Rewriter, loop: Node, step: Step, start: Value, source: Value, axis: int
) -> tuple[Value | None, Value]:
    """The states after all steps, [t, b, h], if those are read, and the last one."""
    x = source if axis == 0 else rw.op.Transpose(source, perm=[1, 0, 2])
    arrays = (step.w, step.r, step.bias)
    inputs: list[Value | None] = [x]
    inputs += [rw.const(array[np.newaxis].astype(np.float32)) for array in arrays]
    stacked = any(out.uses for out in loop.outputs[len(loop.inputs) - 2 :])
    if not is_zero(start):
        inputs += [None] if stacked else []  # all sequences have all steps
        inputs.append(rw.op.Unsqueeze(start, rw.ints(0)))
    attrs = {"hidden_size": step.r.shape[1], "linear_before_reset": int(step.linear_before_reset)}
    if not stacked:
        last = rw.insert(gru.OP_TYPE, inputs, attrs, domain=gru.DOMAIN).output
        return None, rw.op.Squeeze(last, rw.ints(0))
    every, last = rw.insert("GRU", inputs, attrs, outputs=2).outputs
    return rw.op.Squeeze(every, rw.ints(1)), rw.op.Squeeze(last, rw.ints(0))
