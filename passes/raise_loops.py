"""Loops over a sequence whose body is the step of a GRU or LSTM, as one op."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.ir.control import loop_trip_count
from graphopt.ir.graph import Attr, Graph, Node, Value
from graphopt.ops import gru
from graphopt.passes._counters import first_count
from graphopt.passes._gru_step import gru_step, with_mask
from graphopt.passes._inline import replace
from graphopt.passes._lstm_step import lstm_step
from graphopt.passes._step_reader import is_zero
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite.rewriter import Rewriter

RULE = "loop_to_op"


class RaiseLoops(Pass):
    """Replaces a Loop whose body is the step of a GRU or LSTM by that op.

    Needs as many steps as the sequence has positions, which a step takes one after the other, and
    no results but states. A mask may hold the state of a GRU, as raise-gru has it. GPUs take loops
    of any length so; CPUs are as fast without. Fidelity: reassociates.

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


@dataclass(frozen=True)
class _Cell:
    """What a step computes: `states` of `olds` and `x`, in the order of the op's operands.

    With a mask, states stay as they are where it is false.
    """

    op: str
    x: Value
    olds: tuple[Value, ...]
    states: tuple[Value, ...]
    arrays: tuple[np.ndarray, ...]
    attrs: dict[str, Attr]
    mask: Value | None = None


def _cell(old: Value, new: Value) -> _Cell | None:
    """The cell whose state was `old` and is `new`."""
    step = gru_step(new)
    if step is not None and step.h is old and step.gate is None:
        attrs: dict[str, Attr] = {"hidden_size": step.r.shape[1]}
        attrs["linear_before_reset"] = int(step.linear_before_reset)
        return _Cell("GRU", step.x, (old,), (new,), (step.w, step.r, step.bias), attrs, step.mask)
    memory = lstm_step(new)
    others = [] if memory is None else [value for value in memory.read if value is not old]
    if memory is None or len(others) != 1 or len(memory.read) != 2:
        return None
    (x,), r = others, memory.weights(old)
    bias = np.concatenate([memory.bias, np.zeros_like(memory.bias)])
    arrays, states = (memory.weights(x), r, bias), (new, memory.c)
    return _Cell("LSTM", x, (old, memory.old_c), states, arrays, {"hidden_size": r.shape[1]})


def _raise(loop: Node) -> str | None:
    """Put an op in the place of the loop; returns why not, having changed nothing."""
    body: Graph = loop.attrs["body"]
    count = len(loop.inputs) - 2
    after = dict(zip(body.inputs[2:], body.outputs[1:]))
    cells = [_cell(old, new) for old, new in after.items() if new is not old]
    found = [cell for cell in cells if cell is not None]
    if len(found) != 1:
        return "its body is not the step of one GRU or LSTM"
    (cell,) = found
    if [after.get(old) for old in cell.olds] != list(cell.states):
        return "its body is not the step of one GRU or LSTM"
    starts = [loop.inputs[body.inputs.index(old)] for old in cell.olds]
    if any(start is None or start.type != cell.states[0].type for start in starts):
        return "its first state has another shape than those that follow"
    for (old, new), out in zip(after.items(), loop.outputs):
        if new is not old and new not in cell.states and out.uses:
            return f"it computes more than the states of one {cell.op}"
    if any(value is not cell.states[0] for value in body.outputs[1 + count :]):
        return "what it stacks is not its states"
    sequence = _sequence(loop, cell.x)
    masks = None if cell.mask is None else _sequence(loop, cell.mask)
    if sequence is None or (cell.mask is not None and masks is None):
        return "its steps do not take all positions of one sequence in order"
    if masks is not None and not _is_column(*masks, *sequence):
        return "its mask is not one flag for each position"
    rw = Rewriter(loop, [loop, *body.nodes])
    every, *last = _emit(rw, loop, cell, starts, sequence, masks)
    finals: dict[Value, Value | None] = dict(zip(cell.states, last))
    finals |= {old: given for old, given in zip(body.inputs[2:], loop.inputs[2:])}
    results = [finals.get(new) for new in body.outputs[1 : 1 + count]]
    replace(loop, results + [every] * (len(loop.outputs) - count))
    return None


def _sequence(loop: Node, x: Value) -> tuple[Value, int] | None:
    """The sequence whose positions steps take, and the axis along which they do."""
    body: Graph = loop.attrs["body"]
    node = x.producer
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


def _is_column(mask: Value, mask_axis: int, x: Value, axis: int) -> bool:
    """True if a mask has one column and the samples of `x`."""
    samples, batch = x.tensor.dims[1 - axis], mask.tensor.dims[1 - mask_axis]
    return mask.tensor.dims[2] == 1 and batch is not None and batch == samples


def _emit(
    rw: Rewriter,
    loop: Node,
    cell: _Cell,
    starts: list[Value | None],
    sequence: tuple[Value, int],
    masks: tuple[Value, int] | None,
) -> list[Value | None]:
    """The states after all steps, [t, b, h], if those are read, and what the last step gives."""
    x, (w, *others) = _time_first(rw, *sequence), cell.arrays
    if masks is not None:
        x, w = with_mask(rw, x, w, _time_first(rw, *masks))
    inputs: list[Value | None] = [x]
    inputs += [rw.const(array[np.newaxis].astype(np.float32)) for array in (w, *others)]
    stacked = any(out.uses for out in loop.outputs[len(loop.inputs) - 2 :])
    alone = cell.op == gru.OP_TYPE and not stacked
    given = [None if v is None or is_zero(v) else rw.op.Unsqueeze(v, rw.ints(0)) for v in starts]
    if any(given):
        inputs += given if alone else [None, *given]  # all sequences have all steps
    if alone:
        last = rw.insert(gru.OP_TYPE, inputs, cell.attrs, domain=gru.DOMAIN).output
        return [None, rw.op.Squeeze(last, rw.ints(0))]
    every, *states = rw.insert(cell.op, inputs, cell.attrs, outputs=1 + len(starts)).outputs
    rows = rw.op.Squeeze(every, rw.ints(1)) if stacked else None
    return [rows, *(rw.op.Squeeze(state, rw.ints(0)) for state in states)]


def _time_first(rw: Rewriter, source: Value, axis: int) -> Value:
    return source if axis == 0 else rw.op.Transpose(source, perm=[1, 0, 2])
