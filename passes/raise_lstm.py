"""LSTMs that exporters wrote out step by step, as one op."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from graphopt.ir.graph import Graph, Value
from graphopt.passes._lstm_step import LstmStep, lstm_chains
from graphopt.passes._positions import Positions
from graphopt.passes._step_reader import is_zero
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite.rewriter import Rewriter, erase_dead

RULE = "steps_to_lstm"


@dataclass(frozen=True)
class RaiseLstm(Pass):
    """Replaces an LSTM written out step by step by ONNX's `LSTM`.

    Needs steps that share their weights and take positions 0, 1, 2, … of one sequence. Steps are
    recognised by what they compute, whatever the order of sums and of columns in weights. States on
    the way may be read elsewhere, as by a layer above or by pooling, cells may not. Fidelity:
    reassociates.

    Before:
        (float[2,N,3] s, float[N,4] h, float[N,4] c) => (float[N,4] y)
        <float[3,16] w, float[4,16] r, float[16] b, int64 t0 = {0}, int64 t1 = {1}> {
            x0 = Gather(s, t0)
            p0 = Gemm(x0, w, b)
            q0 = MatMul(h, r)
            a0 = Add(p0, q0)
            ai0, af0, ag0, ao0 = Split<axis=1, num_outputs=4>(a0)
            i0 = Sigmoid(ai0) f0 = Sigmoid(af0) g0 = Tanh(ag0) o0 = Sigmoid(ao0)
            k0 = Mul(f0, c)
            n0 = Mul(i0, g0)
            c0 = Add(k0, n0)
            v0 = Tanh(c0)
            h0 = Mul(o0, v0)
            x1 = Gather(s, t1)
            p1 = Gemm(x1, w, b)
            q1 = MatMul(h0, r)
            a1 = Add(p1, q1)
            ai1, af1, ag1, ao1 = Split<axis=1, num_outputs=4>(a1)
            i1 = Sigmoid(ai1) f1 = Sigmoid(af1) g1 = Tanh(ag1) o1 = Sigmoid(ao1)
            k1 = Mul(f1, c0)
            n1 = Mul(i1, g1)
            c1 = Add(k1, n1)
            v1 = Tanh(c1)
            y = Mul(o1, v1)
        }

    After:
        (float[2,N,3] s, float[N,4] h, float[N,4] c) => (float[N,4] y)
        <float[1,16,3] w, float[1,16,4] r, float[1,32] b, int64[1] first = {0}> {
            h0 = Unsqueeze(h, first)
            c0 = Unsqueeze(c, first)
            all, last, cell = LSTM<hidden_size=4>(s, w, r, b, , h0, c0)
            y = Squeeze(last, first)
        }
    """

    name = "raise-lstm"
    fidelity = Fidelity.REASSOCIATES

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        changed = False
        while self._raise_one(graph, ctx):
            changed = True  # a layer above reads other values now
        return changed

    def _raise_one(self, graph: Graph, ctx: PassContext) -> bool:
        for steps in lstm_chains(graph):
            reason = _replace(steps)
            if reason is None:
                ctx.stats.hits[RULE] += 1
                return True
            ctx.stats.refuse(RULE, steps[-1].h.producer, reason)  # type: ignore[arg-type]
        return False


def _replace(steps: list[LstmStep]) -> str | None:
    """Put one op in the place of the steps; returns why not, having changed nothing."""
    last = steps[-1]
    read = _read(steps)
    if read is None:
        return "its steps do not share their weights"
    (x, h), *_ = read
    for state in (h, steps[0].old_c):
        if state is not None and not is_zero(state) and state.type != last.h.type:
            return "its first state has another shape than those that follow"
    nodes = {node: None for step in steps for node in step.nodes}
    given = {last.c, *(step.h for step in steps)}
    inner = [v for node in nodes for v in node.outputs if v not in given]
    if any(use.user not in nodes for value in inner for use in value.uses):
        return "a value other than its states and the last cell is also read elsewhere"
    sequence = Positions.of([own for own, _ in read])
    if sequence is None:
        return "its steps do not take positions 0, 1, 2, … of one sequence"
    # The first cell needs all that the op reads, and nothing reads a state before it.
    root = steps[0].c.producer
    assert root is not None and root.graph is not None
    rw = Rewriter(root, nodes)
    states, cell = _emit(rw, steps, sequence.time_first(rw), x, h)
    for step, state in zip(steps, states):
        root.graph.replace_uses(step.h, state)
    root.graph.replace_uses(last.c, cell)
    erase_dead(root.graph, [*nodes, *rw.inserted])
    return None


def _read(steps: list[LstmStep]) -> list[tuple[Value, Value | None]] | None:
    """The input and the old state of each step; None if these are not multiplied alike."""
    found: list[tuple[Value, Value | None]] = []
    for before, step in pairwise(steps):
        others = [value for value in step.read if value is not before.h]
        if len(others) != 1:
            return None
        found.append((others[0], before.h))
    wanted = [steps[1].weights(value) for value in found[0] if value is not None]
    options = [steps[0].read, steps[0].read[::-1]]
    fits = [pair for pair in options if _same(map(steps[0].weights, pair), wanted)]
    if not fits:
        return None
    found.insert(0, (fits[0][0], fits[0][1] if len(fits[0]) > 1 else None))
    for step, pair in zip(steps[2:], found[2:]):
        if not _same((step.weights(value) for value in pair if value is not None), wanted):
            return None
    return found if all(np.array_equal(s.bias, steps[0].bias) for s in steps) else None


def _same(arrays: Iterable[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(arrays, others))


def _emit(
    rw: Rewriter, steps: list[LstmStep], sequence: Value, x: Value, h: Value | None
) -> tuple[list[Value], Value]:
    """The op for all steps: the state after each, and the last cell."""
    first, axis = steps[0], rw.ints(0)
    recurrent = steps[1].weights(first.h)
    bias = np.concatenate([first.bias, np.zeros_like(first.bias)])
    arrays = (first.weights(x), recurrent, bias)
    inputs: list[Value | None] = [sequence]
    inputs += [rw.const(array[np.newaxis].astype(np.float32)) for array in arrays]
    starts = [None if v is None or is_zero(v) else v for v in (h, first.old_c)]
    if any(starts):
        inputs.append(None)  # all sequences have all steps
        inputs += [v and rw.op.Unsqueeze(v, axis) for v in starts]
    hidden = recurrent.shape[1]
    made = rw.insert("LSTM", inputs, {"hidden_size": hidden}, outputs=3)
    every, state, cell = made.outputs
    inner = {node for step in steps for node in step.nodes}
    if all(use.user in inner for step in steps[:-1] for use in step.h.uses):
        states = [step.h for step in steps[:-1]] + [rw.op.Squeeze(state, axis)]
    else:
        rows = rw.op.Squeeze(every, rw.ints(1))
        at = (rw.const(np.array(t, np.int64)) for t in range(len(steps)))
        states = [rw.op.Gather(rows, place, axis=0) for place in at]
    return states, rw.op.Squeeze(cell, axis)
