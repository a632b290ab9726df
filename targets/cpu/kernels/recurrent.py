"""ONNX RNN, GRU and LSTM: the recurrence, after one GEMM has projected the inputs of every step.

What the kernels take and return (float32; `t` steps, `b` samples, `h` hidden units, `d` directions,
`g` gates in ONNX order: RNN i, GRU zrh, LSTM iofc):

    gates          [t, b, d * g * h]  X W^T + Wb + Rb, both directions side by side; a GRU with
                                      linear_before_reset leaves Rb of its hidden gate out
    recurrence     [d, h, g * h]      R as `transpose_recurrence` lays it out
    sequence_lens  [b] int32          steps of each sample, limited to [0, t] (optional)
    initial_h, initial_c [d, b, h]    state before the first step, 0 if left out (optional)
    attention      [t, b]             scales the update gate of a GRU (optional)
    y              [t, d, b, h]       every hidden state, 0 where a sequence is over
    y_h, y_c       [d, b, h]          state after the last step; of an empty sequence, before it

`t` and `b` are symbolic.  A block of samples runs through all its steps with its state in the
nearest cache; every load of a weight serves the whole block.
"""

from functools import cache

import numpy as np
from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.recurrent_step import (
    BlockedCell,
    State,
    gru_step,
    lstm_step,
    rnn_step,
)
from graphopt.targets.kernels import script
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.recurrent_cell import Buffers, Cell, Direction
from graphopt.targets.kernels.script import inlined

_SIGMOID, _TANH = Activation("sigmoid"), Activation("tanh")


def transpose_recurrence(r: np.ndarray) -> np.ndarray:
    """ONNX R [d, g * h, h] as the kernels read it: [d, h, g * h]."""
    return np.ascontiguousarray(r.transpose(0, 2, 1))


@inlined
def _start(cell, io, at):
    """The state before the first step."""
    for m, u in T.grid(at.rows, cell.hidden):
        at.h[m, u] = io.initial_h[at.d, at.first + m, u] if cell.has("initial_h") else T.float32(0)
        if cell.kind == "lstm":
            at.c[m, u] = (
                io.initial_c[at.d, at.first + m, u] if cell.has("initial_c") else T.float32(0)
            )


@inlined
def _commit(cell, io, at, t):
    """Make the new state the state, unless the sequence is over; y gets it, or 0."""
    for m in range(at.rows):
        alive = T.meta_var(
            T.Cast("int64", io.lens[at.first + m]) > t
            if cell.has("sequence_lens")
            else T.bool(True)
        )
        for u in range(cell.hidden):
            io.y[t, at.d, at.first + m, u] = T.Select(alive, at.new_h[m, u], T.float32(0))
            at.h[m, u] = T.Select(alive, at.new_h[m, u], at.h[m, u])
            if cell.kind == "lstm":
                at.c[m, u] = T.Select(alive, at.new_c[m, u], at.c[m, u])


@inlined
def _run(cell, io, d, rows, first):
    """All steps of samples [first, first + rows) in direction `d`."""
    h = T.alloc_buffer((rows, cell.hidden), "float32", scope="local")
    new_h = T.alloc_buffer((rows, cell.hidden), "float32", scope="local")
    c = T.alloc_buffer((rows, cell.hidden), "float32", scope="local")
    new_c = T.alloc_buffer((rows, cell.hidden), "float32", scope="local")
    gates = T.alloc_buffer((rows, cell.gates * cell.hidden), "float32", scope="local")
    at = T.meta_var(State(first, rows, d, h, new_h, c, new_c, gates))
    _start(cell, io, at)
    for step in range(io.steps):
        t = T.meta_var(cell.time(step, io.steps, d))
        if cell.kind == "rnn":
            rnn_step(cell, io, at, t)
        elif cell.kind == "gru":
            gru_step(cell, io, at, t)
        else:
            lstm_step(cell, io, at, t)
        _commit(cell, io, at, t)
    for m, u in T.grid(rows, cell.hidden):
        io.y_h[d, first + m, u] = h[m, u]
        if cell.kind == "lstm":
            io.y_c[d, first + m, u] = c[m, u]


@inlined
def _blocks(cell, io, d, place, done):
    """The samples from `done` on in blocks of one height, then the rest in lower ones."""
    if place < len(cell.blocks):
        height = T.meta_var(cell.blocks[place])
        for i in range((io.samples - done) // height):
            _run(cell, io, d, height, done + i * height)
        _blocks(cell, io, d, place + 1, io.samples - (io.samples - done) % height)


def _layer(cell: Cell) -> PrimFunc:
    steps, samples = tirx.Var("steps", "int64"), tirx.Var("samples", "int64")
    d, h, g = cell.directions, cell.hidden, cell.gates
    extra_width = 3 * h if cell.kind == "lstm" else h

    @script.prim_func(private=True, s_tir=True)
    def recurrent(
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
        x = T.match_buffer(gates, (steps, samples, d * g * h), "float32", align=4)
        r = T.match_buffer(recurrence, (d, h, g * h), "float32", align=4)
        more = T.match_buffer(extra, (d, extra_width), "float32", align=4)
        lens = T.match_buffer(sequence_lens, (samples,), "int32", align=4)
        h_0 = T.match_buffer(initial_h, (d, samples, h), "float32", align=4)
        c_0 = T.match_buffer(initial_c, (d, samples, h), "float32", align=4)
        scale = T.match_buffer(attention, (steps, samples), "float32", align=4)
        out = T.match_buffer(y, (steps, d, samples, h), "float32", align=4)
        h_n = T.match_buffer(y_h, (d, samples, h), "float32", align=4)
        c_n = T.match_buffer(y_c, (d, samples, h), "float32", align=4)
        io = T.meta_var(Buffers(x, r, more, lens, h_0, c_0, scale, out, h_n, c_n, steps, samples))
        _blocks(cell, io, 0, 0, T.int64(0))
        if d == 2:
            _blocks(cell, io, 1, 0, T.int64(0))

    names = {"extra": "more", "sequence_lens": "lens", "initial_h": "h_0", "initial_c": "c_0"}
    names["attention"] = "scale"
    dropped = [name for option, name in names.items() if not cell.has(option)]
    return without_parameters(recurrent, *dropped, *([] if cell.kind == "lstm" else ["c_n"]))


def _given(**options: bool) -> frozenset[str]:
    return frozenset(name for name, given in options.items() if given)


@cache
def rnn(
    hidden: int,
    direction: Direction = "forward",
    activations: tuple[Activation, ...] | None = None,
    limit: float | None = None,
    sequence_lens: bool = False,
    initial_h: bool = False,
    lanes: int = 16,
) -> PrimFunc:
    """Kernel (gates, recurrence, sequence_lens?, initial_h?) -> y, y_h of an ONNX RNN.

    `activations` are ONNX's in ONNX's order, one a direction (tanh); `limit` is ONNX's `clip`.
    """
    both = 2 if direction == "bidirectional" else 1
    given = _given(sequence_lens=sequence_lens, initial_h=initial_h)
    chosen = activations or (_TANH,) * both
    return _layer(BlockedCell("rnn", 1, hidden, direction, chosen, limit, False, given, lanes))


@cache
def gru(
    hidden: int,
    direction: Direction = "forward",
    activations: tuple[Activation, ...] | None = None,
    limit: float | None = None,
    linear_before_reset: bool = False,
    sequence_lens: bool = False,
    initial_h: bool = False,
    attention: bool = False,
    lanes: int = 16,
) -> PrimFunc:
    """Kernel (gates, recurrence, hidden_bias?, sequence_lens?, initial_h?, attention?) -> y, y_h.

    With `linear_before_reset` the third argument is hidden_bias [d, h], Rb of the hidden gate;
    without, there is none.  `activations` are (f, g) a direction (sigmoid, tanh).  With `attention`
    the new state is h + attention * z * (n - h); without, it is n + z * (h - n).
    """
    both = 2 if direction == "bidirectional" else 1
    given = _given(
        extra=linear_before_reset,
        sequence_lens=sequence_lens,
        initial_h=initial_h,
        attention=attention,
    )
    chosen = activations or (_SIGMOID, _TANH) * both
    cell = BlockedCell(
        "gru", 3, hidden, direction, chosen, limit, linear_before_reset, given, lanes
    )
    return _layer(cell)


@cache
def lstm(
    hidden: int,
    direction: Direction = "forward",
    activations: tuple[Activation, ...] | None = None,
    limit: float | None = None,
    input_forget: bool = False,
    peepholes: bool = False,
    sequence_lens: bool = False,
    initial_h: bool = False,
    initial_c: bool = False,
    lanes: int = 16,
) -> PrimFunc:
    """Kernel (gates, recurrence, p?, sequence_lens?, initial_h?, initial_c?) -> y, y_h, y_c.

    `p` [d, 3 * h] are the peephole weights (iof).  `activations` are (f, g, h) a direction
    (sigmoid, tanh, tanh).  With `input_forget` the forget gate is 1 - input gate.
    """
    both = 2 if direction == "bidirectional" else 1
    given = _given(
        extra=peepholes, sequence_lens=sequence_lens, initial_h=initial_h, initial_c=initial_c
    )
    chosen = activations or (_SIGMOID, _TANH, _TANH) * both
    return _layer(
        BlockedCell("lstm", 4, hidden, direction, chosen, limit, input_forget, given, lanes)
    )
