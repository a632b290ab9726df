"""GRUs that exporters wrote out step by step, as one op."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from graphopt.ir.graph import Graph, Value
from graphopt.ops import attentional_gru, gru
from graphopt.passes._gru_step import Step, gru_chains, with_mask
from graphopt.passes._positions import Positions
from graphopt.passes._shapes import reshaped
from graphopt.passes._step_reader import is_zero
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite import NoMatch, Rewriter
from graphopt.rewrite.rewriter import erase_dead

RULE = "steps_to_gru"


@dataclass(frozen=True)
class RaiseGru(Pass):
    """Replaces a GRU written out step by step by `graphopt::GRU`.

    Needs steps that share their weights and take positions 0, 1, 2, … of one sequence. Steps are
    recognised by what they compute, whatever the order of sums and of columns in weights. A mask
    that holds the state at padded steps becomes one more input column, which saturates the update
    gate. A GRU with attentional update gate (DIEN's AUGRU) becomes `graphopt::AttentionalGRU`.
    Fidelity: reassociates.

    Before:
        (float[2,N,3] s, float[N,4] h) => (float[N,4] y)
        <float[3,12] w, float[4,12] r, float[12] b, float one = {1}, int64 t0 = {0},
         int64 t1 = {1}> {
            x0 = Gather(s, t0)
            a0 = MatMul(x0, w)
            c0 = MatMul(h, r)
            d0 = Add(c0, b)
            az0, ar0, an0 = Split<axis=1, num_outputs=3>(a0)
            cz0, cr0, cn0 = Split<axis=1, num_outputs=3>(d0)
            pz0 = Add(az0, cz0)
            z0 = Sigmoid(pz0)
            pr0 = Add(ar0, cr0)
            r0 = Sigmoid(pr0)
            q0 = Mul(r0, cn0)
            pn0 = Add(an0, q0)
            n0 = Tanh(pn0)
            k0 = Sub(one, z0)
            u0 = Mul(k0, n0)
            v0 = Mul(z0, h)
            h0 = Add(u0, v0)
            x1 = Gather(s, t1)
            a1 = MatMul(x1, w)
            c1 = MatMul(h0, r)
            d1 = Add(c1, b)
            az1, ar1, an1 = Split<axis=1, num_outputs=3>(a1)
            cz1, cr1, cn1 = Split<axis=1, num_outputs=3>(d1)
            pz1 = Add(az1, cz1)
            z1 = Sigmoid(pz1)
            pr1 = Add(ar1, cr1)
            r1 = Sigmoid(pr1)
            q1 = Mul(r1, cn1)
            pn1 = Add(an1, q1)
            n1 = Tanh(pn1)
            k1 = Sub(one, z1)
            u1 = Mul(k1, n1)
            v1 = Mul(z1, h0)
            y = Add(u1, v1)
        }

    After:
        (float[2,N,3] s, float[N,4] h) => (float[N,4] y)
        <float[1,12,3] w, float[1,12,4] r, float[1,24] b, int64[1] first = {0},
         int64[2] shape = {-1, 4}> {
            h0 = Unsqueeze(h, first)
            last = graphopt.GRU<hidden_size=4, linear_before_reset=1>(s, w, r, b, h0)
            y = Reshape(last, shape)
        }
    """

    name = "raise-gru"
    fidelity = Fidelity.REASSOCIATES

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        changed = False
        for steps in gru_chains(graph):
            reason = _replace(steps)
            if reason is None:
                ctx.stats.hits[RULE] += 1
                changed = True
            else:
                ctx.stats.refuse(RULE, steps[-1].new.producer, reason)  # type: ignore[arg-type]
        return changed


def _replace(steps: list[Step]) -> str | None:
    """Put one op in the place of the steps; returns why not, having changed nothing."""
    first, last = steps[0], steps[-1]
    if first.gate is not None and not first.linear_before_reset:
        return "its reset gate multiplies the state, which the op with attention does not know"
    if not all(step.continues(first) for step in steps[1:]):
        return "its steps do not share their weights"
    for step, following in pairwise(steps):
        if any(use.user not in following.nodes for use in step.new.uses):
            return "states before the last are also read elsewhere"
    axes = [Positions.of([getattr(s, name) for s in steps]) for name in ("x", "mask", "gate")]
    if axes[0] is None or any(
        found is None and getattr(first, name) is not None
        for found, name in zip(axes[1:], ("mask", "gate"))
    ):
        return "its steps do not take positions 0, 1, 2, … of one sequence"
    root = last.new.producer
    assert root is not None and root.graph is not None
    rw = Rewriter(root, [node for step in steps for node in step.nodes])
    x, mask, gate = (None if found is None else found.time_first(rw) for found in axes)
    state = _emit(rw, steps[0], x, mask, gate)  # type: ignore[arg-type]
    result = reshaped(rw, state, last.new.shape)
    if isinstance(result, NoMatch):
        rw.take_back()
        return result.reason
    root.graph.replace_uses(last.new, result)
    erase_dead(root.graph, [root])
    return None


def _emit(rw: Rewriter, step: Step, x: Value, mask: Value | None, gate: Value | None) -> Value:
    """The op for all steps; its last state, [1, batch, hidden]."""
    w = step.w
    if mask is not None:
        x, w = with_mask(rw, x, w, mask)
    weights = [rw.const(array[np.newaxis].astype(np.float32)) for array in (w, step.r, step.bias)]
    attrs = {"hidden_size": step.r.shape[1], "linear_before_reset": int(step.linear_before_reset)}
    if gate is not None:
        given = [x, *weights, rw.op.Unsqueeze(step.h, rw.ints(0)), gate]
        return rw.insert(attentional_gru.OP_TYPE, given, domain=attentional_gru.DOMAIN).output
    inputs = [x, *weights]
    if not is_zero(step.h):
        inputs.append(rw.op.Unsqueeze(step.h, rw.ints(0)))
    return rw.insert(gru.OP_TYPE, inputs, attrs, domain=gru.DOMAIN).output
