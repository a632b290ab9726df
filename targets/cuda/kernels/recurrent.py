"""The recurrence of an RNN, GRU or LSTM on a GPU: a thread per hidden unit of a sample.

Buffers are laid out as for the CPU's `recurrent` kernels. A block holds all units of one direction
of some samples, their states in shared memory; a warp reads neighbouring columns of the weights,
which all blocks find in the second-level cache. The cell of an LSTM stays in a register.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.kernels import script
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.recurrent_cell import Buffers, Cell
from graphopt.targets.kernels.script import inlined

MAX_HIDDEN = 1024  # threads of a block
_THREADS = 128  # of a block that has fewer units than that


@dataclass(frozen=True)
class _Unit:
    """Unit `u` of sample `s`, which is the block's number `row`, in direction `d`."""

    d: Any
    s: Any
    row: Any
    u: Any
    h: Any  # shared: the state of the block's samples
    gated: Any  # shared, of a GRU: r * h
    acc: Any  # local: the gates of this unit; the new state comes to acc[0]
    c: Any  # local: the cell, and the new one


@inlined
def _start_gates(cell, io, at, t, count):
    """acc[g] = gate g of the projected inputs."""
    for g in T.unroll(count):
        at.acc[g] = io.gates[t, at.s, (at.d * cell.gates + g) * cell.hidden + at.u]


@inlined
def _add_products(cell, io, at, state, first, count):
    """acc[g] += state . recurrence for gates [first, first + count)"""
    for k in range(cell.hidden):
        for g in T.unroll(count):
            at.acc[first + g] = (
                at.acc[first + g]
                + state[at.row, k] * io.recurrence[at.d, k, (first + g) * cell.hidden + at.u]
            )


@inlined
def _rnn_step(cell, io, at, t):
    _start_gates(cell, io, at, t, 1)
    _add_products(cell, io, at, at.h, 0, 1)
    at.acc[0] = cell.activate(at.d, 0, at.acc[0])


@inlined
def _gru_step(cell, io, at, t):
    acc = T.meta_var(at.acc)
    _start_gates(cell, io, at, t, 2 if cell.option else 3)
    if cell.option:
        acc[2] = io.extra[at.d, at.u]
    _add_products(cell, io, at, at.h, 0, 3 if cell.option else 2)
    acc[0] = cell.activate(at.d, 0, acc[0])
    acc[1] = cell.activate(at.d, 0, acc[1])
    if cell.has("attention"):
        acc[0] = T.float32(1) - io.attention[t, at.s] * acc[0]
    if cell.option:
        acc[2] = io.gates[t, at.s, (at.d * 3 + 2) * cell.hidden + at.u] + acc[1] * acc[2]
    else:
        at.gated[at.row, at.u] = acc[1] * at.h[at.row, at.u]
        _add_products(cell, io, at, at.gated, 2, 1)
    acc[2] = cell.activate(at.d, 1, acc[2])
    acc[0] = (T.float32(1) - acc[0]) * acc[2] + acc[0] * at.h[at.row, at.u]


@inlined
def _lstm_step(cell, io, at, t):
    acc = T.meta_var(at.acc)
    _start_gates(cell, io, at, t, 4)
    _add_products(cell, io, at, at.h, 0, 4)
    acc[0] = cell.lstm_gate(io, at.d, at.u, 0, acc[0], at.c[0])
    acc[2] = (
        T.float32(1) - acc[0] if cell.option else cell.lstm_gate(io, at.d, at.u, 2, acc[2], at.c[0])
    )
    acc[3] = cell.activate(at.d, 1, acc[3])
    at.c[1] = acc[2] * at.c[0] + acc[0] * acc[3]
    acc[1] = cell.lstm_gate(io, at.d, at.u, 1, acc[1], at.c[1])
    acc[0] = acc[1] * cell.activate(at.d, 2, at.c[1])


@inlined
def _step(cell, io, at, t, inside):
    """One step: h[u] becomes the new state, where the sequence is not over."""
    if cell.kind == "rnn":
        _rnn_step(cell, io, at, t)
    elif cell.kind == "gru":
        _gru_step(cell, io, at, t)
    else:
        _lstm_step(cell, io, at, t)
    alive = T.meta_var(cell.alive(io, at.s, t))
    if inside:
        io.y[t, at.d, at.s, at.u] = T.Select(alive, at.acc[0], T.float32(0))
    at.acc[0] = T.Select(alive, at.acc[0], at.h[at.row, at.u])
    if cell.kind == "lstm":
        at.c[0] = T.Select(alive, at.c[1], at.c[0])
    T.tvm_storage_sync("shared")  # until all have read the old state
    at.h[at.row, at.u] = at.acc[0]


def _start(option: str, initial: Any, cell: Cell, io: Buffers, at: _Unit) -> Any:
    """The state before the first step."""
    if cell.has(option):
        return T.if_then_else(io.samples > 0, initial[at.d, at.s, at.u], T.float32(0))
    return T.float32(0)


@inlined
def _run(cell, io, at, inside):
    """All steps of one unit; none where there are no samples."""
    at.h[at.row, at.u] = _start("initial_h", io.initial_h, cell, io, at)
    if cell.kind == "lstm":
        at.c[0] = _start("initial_c", io.initial_c, cell, io, at)
    for step in range(T.min(io.steps, io.steps * io.samples)):
        _step(cell, io, at, cell.time(step, io.steps, at.d), inside)
    if inside:
        io.y_h[at.d, at.s, at.u] = at.h[at.row, at.u]
        if cell.kind == "lstm":
            io.y_c[at.d, at.s, at.u] = at.c[0]


@cache
def recurrent(cell: Cell) -> PrimFunc:
    """Kernel (gates, recurrence, extra?, sequence_lens?, initial_h?, initial_c?, attention?)
    -> y, y_h, and y_c of an LSTM; see the CPU's `recurrent` for what they hold.

    Raises:
        ValueError: there are more hidden units than a block has threads.
    """
    if cell.hidden > MAX_HIDDEN:
        raise ValueError(f"more than {MAX_HIDDEN} hidden units")
    steps, samples = tirx.Var("steps", "int64"), tirx.Var("samples", "int64")
    d, h, g = cell.directions, cell.hidden, cell.gates
    rows, wide = max(1, _THREADS // h), (3 * h if cell.kind == "lstm" else h)

    @script.prim_func(private=True, s_tir=True)
    def layer(
        gates: T.handle,
        recurrence: T.handle,
        extra: T.handle,
        sequence_lens: T.handle,
        initial_h: T.handle,
        initial_c: T.handle,
        attention: T.handle,
        y: T.handle,
        y_h: T.handle,
        y_c: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        x = T.match_buffer(gates, (steps, samples, d * g * h), "float32")
        r = T.match_buffer(recurrence, (d, h, g * h), "float32")
        more = T.match_buffer(extra, (d, wide), "float32")
        lens = T.match_buffer(sequence_lens, (samples,), "int32")
        h_0 = T.match_buffer(initial_h, (d, samples, h), "float32")
        c_0 = T.match_buffer(initial_c, (d, samples, h), "float32")
        scale = T.match_buffer(attention, (steps, samples), "float32")
        out = T.match_buffer(y, (steps, d, samples, h), "float32")
        h_n = T.match_buffer(y_h, (d, samples, h), "float32")
        c_n = T.match_buffer(y_c, (d, samples, h), "float32")
        io = T.meta_var(Buffers(x, r, more, lens, h_0, c_0, scale, out, h_n, c_n, steps, samples))
        # TVM launches a block where there are no samples; it must not conclude that there are some.
        blocks = T.meta_var(T.max(T.ceildiv(samples, rows), T.int64(1)))
        for block in T.thread_binding(blocks, thread="blockIdx.x"):
            for side in T.thread_binding(d, thread="blockIdx.y"):
                for row in T.thread_binding(rows, thread="threadIdx.y"):
                    for u in T.thread_binding(h, thread="threadIdx.x"):
                        state = T.alloc_buffer((rows, h), "float32", scope="shared")
                        gated = T.alloc_buffer((rows, h), "float32", scope="shared")
                        acc = T.alloc_buffer((4,), "float32", scope="local")
                        c = T.alloc_buffer((2,), "float32", scope="local")
                        # Threads beyond the last sample compute it again: all of a block must wait
                        # for each other.
                        s = T.meta_var(T.min(block * rows + row, samples - 1))
                        at = T.meta_var(_Unit(side, s, row, u, state, gated, acc, c))
                        _run(cell, io, at, block * rows + row < samples)

    names = {"extra": "more", "sequence_lens": "lens", "initial_h": "h_0", "initial_c": "c_0"}
    names["attention"] = "scale"
    dropped = [name for option, name in names.items() if not cell.has(option)]
    return without_parameters(layer, *dropped, *([] if cell.kind == "lstm" else ["c_n"]))
