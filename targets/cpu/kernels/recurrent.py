"""ONNX RNN, GRU and LSTM: the recurrence, after one GEMM has projected the inputs of every step.

What the kernels take and return (float32; `t` steps, `b` samples, `h` hidden units, `d` directions,
`g` gates in ONNX order: RNN i, GRU zrh, LSTM iofc):

    gates          [t, b, d * g * h]  X W^T + Wb + Rb, both directions side by side; a GRU with
                                      linear_before_reset leaves Rb of its hidden gate out
    recurrence     [d, h, g * h]      R as `transpose_recurrence` lays it out
    sequence_lens  [b] int32          steps of each sample, limited to [0, t] (optional)
    initial_h, initial_c [d, b, h]    state before the first step, 0 if left out (optional)
    y              [t, d, b, h]       every hidden state, 0 where a sequence is over
    y_h, y_c       [d, b, h]          state after the last step; of an empty sequence, before it

`t` and `b` are symbolic.  A block of samples runs through all its steps with its state in the
nearest cache; every load of a weight serves the whole block.
"""

from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any, Literal, get_args

import numpy as np
from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from .activation import Activation
from .elementary import clip
from .parameters import without_parameters

Direction = Literal["forward", "reverse", "bidirectional"]

_SIGMOID, _TANH = Activation("sigmoid"), Activation("tanh")


def transpose_recurrence(r: np.ndarray) -> np.ndarray:
    """ONNX R [d, g * h, h] as the kernels read it: [d, h, g * h]."""
    return np.ascontiguousarray(r.transpose(0, 2, 1))


@dataclass(frozen=True)
class _Tiles:
    """`columns` split into tiles of `vectors` vectors.

    The last vectors overlap their neighbours instead of being shorter: the columns they share are
    computed twice, so what is computed must not depend on what is stored.
    """

    columns: int
    max_lanes: int
    wanted: int

    @property
    def lanes(self) -> int:
        return min(self.max_lanes, 1 << (self.columns.bit_length() - 1))

    @property
    def vectors(self) -> int:
        return min(self.wanted, ceil(self.columns / self.lanes))

    @property
    def count(self) -> int:
        return ceil(self.columns / (self.lanes * self.vectors))

    def column(self, tile, v):
        """First column of vector `v` of `tile`."""
        return T.min((tile * self.vectors + v) * self.lanes, self.columns - self.lanes)


@dataclass(frozen=True)
class _Cell:
    """The static facts of one layer."""

    kind: str
    gates: int
    hidden: int
    direction: Direction
    activations: tuple[Activation, ...]  # all of the first direction, then of the second
    limit: float | None
    lanes: int
    option: bool  # GRU: linear_before_reset; LSTM: input_forget
    optional: frozenset[str]  # the optional buffers that are given

    def __post_init__(self) -> None:
        if self.direction not in get_args(Direction):
            raise ValueError(f"unknown direction {self.direction!r}; known: {get_args(Direction)}")
        if self.hidden < 1:
            raise ValueError(f"a recurrent layer needs hidden units, not {self.hidden}")
        wanted = {"rnn": 1, "gru": 2, "lstm": 3}[self.kind] * self.directions
        if len(self.activations) != wanted:
            raise ValueError(
                f"a {self.direction} {self.kind} takes {wanted} activations, "
                f"not {len(self.activations)}"
            )

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    @property
    def block(self) -> int:
        """Samples that share each load of a weight: as many as the vector registers allow."""
        return 4 if self.lanes >= 16 else 2

    @property
    def units(self) -> _Tiles:
        return _Tiles(self.hidden, self.lanes, 1)

    def activate(self, d: int, which: int, value):
        """Activation `which` (f, g, h are 0, 1, 2) of direction `d`, its input limited.

        The cell, input of h, is not: ONNX Runtime limits the gates alone.
        """
        if self.limit is not None and which < 2:
            value = clip(value, -self.limit, self.limit)
        per_direction = len(self.activations) // self.directions
        return self.activations[d * per_direction + which](value)

    def has(self, name: str) -> bool:
        """Whether the optional buffer `name` is among the arguments."""
        return name in self.optional

    def lstm_gate(self, io, at, m, u, gate: int, c):
        """Input, output or forget gate (0, 1, 2) of one unit, which may see the cell `c`."""
        total = at.gates[m, gate * self.hidden + u]
        if self.has("extra"):
            total = total + io.extra[at.d, gate * self.hidden + u] * c
        return self.activate(at.d, 0, total)

    def forget_gate(self, io, at, m, u, c):
        if self.option:
            return T.float32(1) - self.lstm_gate(io, at, m, u, 0, c)
        return self.lstm_gate(io, at, m, u, 2, c)

    def time(self, step, steps, d: int):
        """The time at which direction `d` makes its `step`."""
        return steps - 1 - step if self.direction == "reverse" or d == 1 else step


@dataclass(frozen=True)
class _Buffers:
    """The arguments of a kernel; `extra` is the GRU's hidden bias or the LSTM's peepholes."""

    gates: Any
    recurrence: Any
    extra: Any
    lens: Any
    initial_h: Any
    initial_c: Any
    y: Any
    y_h: Any
    y_c: Any
    steps: Any
    samples: Any


@dataclass(frozen=True)
class _State:
    """A block of `rows` samples from `first` on: its state and the gates of the current step."""

    first: Any
    rows: int
    d: int
    h: Any
    new_h: Any
    c: Any  # GRU: r * h
    new_c: Any  # GRU: z
    gates: Any


@T.inline
def _project(cell, io, at, t, state, gate, count, biased):
    """at.gates of gates [gate, gate + count) = their start + state . recurrence.

    They start from the projected inputs, or from the hidden bias of a GRU (`biased`).
    """
    tiles = T.meta_var(_Tiles(count * cell.hidden, cell.lanes, 8 if at.rows == 1 else 3))
    first = T.meta_var(gate * cell.hidden)
    width = T.meta_var(cell.gates * cell.hidden)
    acc = T.alloc_buffer((at.rows, tiles.vectors, tiles.lanes), "float32", scope="local")
    for tile in range(tiles.count):
        for m in T.unroll(at.rows):
            for v in T.unroll(tiles.vectors):
                for j in T.vectorized(tiles.lanes):
                    if biased:
                        acc[m, v, j] = io.extra[at.d, tiles.column(tile, v) + j]
                    else:
                        acc[m, v, j] = io.gates[
                            t, at.first + m, at.d * width + first + tiles.column(tile, v) + j
                        ]
        for k in range(cell.hidden):
            for v in T.unroll(tiles.vectors):
                for m in T.unroll(at.rows):
                    for j in T.vectorized(tiles.lanes):
                        acc[m, v, j] = (
                            acc[m, v, j]
                            + state[m, k]
                            * io.recurrence[at.d, k, first + tiles.column(tile, v) + j]
                        )
        for m in T.unroll(at.rows):
            for v in T.unroll(tiles.vectors):
                for j in T.vectorized(tiles.lanes):
                    at.gates[m, first + tiles.column(tile, v) + j] = acc[m, v, j]


@T.inline
def _rnn_step(cell, io, at, t):
    _project(cell, io, at, t, at.h, 0, 1, False)
    for m, v in T.grid(at.rows, cell.units.count):
        for j in T.vectorized(cell.units.lanes):
            u = T.meta_var(cell.units.column(v, 0) + j)
            at.new_h[m, u] = cell.activate(at.d, 0, at.gates[m, u])


@T.inline
def _gru_step(cell, io, at, t):
    hidden = T.meta_var(cell.hidden)
    _project(cell, io, at, t, at.h, 0, 2, False)
    for m, v in T.grid(at.rows, cell.units.count):
        for j in T.vectorized(cell.units.lanes):
            u = T.meta_var(cell.units.column(v, 0) + j)
            at.new_c[m, u] = cell.activate(at.d, 0, at.gates[m, u])
        for j in T.vectorized(cell.units.lanes):
            u = T.meta_var(cell.units.column(v, 0) + j)
            r = T.meta_var(cell.activate(at.d, 0, at.gates[m, hidden + u]))
            at.c[m, u] = r if cell.option else r * at.h[m, u]
    _project(cell, io, at, t, at.h if cell.option else at.c, 2, 1, cell.option)
    for m, v in T.grid(at.rows, cell.units.count):
        for j in T.vectorized(cell.units.lanes):
            u = T.meta_var(cell.units.column(v, 0) + j)
            total = T.meta_var(at.gates[m, 2 * hidden + u])
            x = T.meta_var(io.gates[t, at.first + m, (at.d * 3 + 2) * hidden + u])
            new = T.meta_var(
                cell.activate(at.d, 1, x + at.c[m, u] * total if cell.option else total)
            )
            z = T.meta_var(at.new_c[m, u])
            at.new_h[m, u] = (T.float32(1) - z) * new + z * at.h[m, u]


@T.inline
def _lstm_step(cell, io, at, t):
    _project(cell, io, at, t, at.h, 0, 4, False)
    for m, v in T.grid(at.rows, cell.units.count):
        for j in T.vectorized(cell.units.lanes):
            u = T.meta_var(cell.units.column(v, 0) + j)
            old = T.meta_var(at.c[m, u])
            new = T.meta_var(cell.activate(at.d, 1, at.gates[m, 3 * cell.hidden + u]))
            at.new_c[m, u] = (
                cell.forget_gate(io, at, m, u, old) * old
                + cell.lstm_gate(io, at, m, u, 0, old) * new
            )
        for j in T.vectorized(cell.units.lanes):
            u = T.meta_var(cell.units.column(v, 0) + j)
            out = T.meta_var(cell.activate(at.d, 2, at.new_c[m, u]))
            at.new_h[m, u] = cell.lstm_gate(io, at, m, u, 1, at.new_c[m, u]) * out


@T.inline
def _start(cell, io, at):
    """The state before the first step."""
    for m, u in T.grid(at.rows, cell.hidden):
        at.h[m, u] = io.initial_h[at.d, at.first + m, u] if cell.has("initial_h") else T.float32(0)
        if cell.kind == "lstm":
            at.c[m, u] = (
                io.initial_c[at.d, at.first + m, u] if cell.has("initial_c") else T.float32(0)
            )


@T.inline
def _commit(cell, io, at, t):
    """Make the new state the state, unless the sequence is over; y gets it, or 0."""
    for m in range(at.rows):
        alive = T.meta_var(
            T.Cast("int64", io.lens[at.first + m]) > t if cell.has("sequence_lens") else T.bool(True)
        )
        for u in range(cell.hidden):
            io.y[t, at.d, at.first + m, u] = T.Select(alive, at.new_h[m, u], T.float32(0))
            at.h[m, u] = T.Select(alive, at.new_h[m, u], at.h[m, u])
            if cell.kind == "lstm":
                at.c[m, u] = T.Select(alive, at.new_c[m, u], at.c[m, u])


@T.inline
def _run(cell, io, d, rows, first):
    """All steps of samples [first, first + rows) in direction `d`."""
    h = T.alloc_buffer((rows, cell.hidden), "float32", scope="local")
    new_h = T.alloc_buffer((rows, cell.hidden), "float32", scope="local")
    c = T.alloc_buffer((rows, cell.hidden), "float32", scope="local")
    new_c = T.alloc_buffer((rows, cell.hidden), "float32", scope="local")
    gates = T.alloc_buffer((rows, cell.gates * cell.hidden), "float32", scope="local")
    at = T.meta_var(_State(first, rows, d, h, new_h, c, new_c, gates))
    _start(cell, io, at)
    for step in range(io.steps):
        t = T.meta_var(cell.time(step, io.steps, d))
        if cell.kind == "rnn":
            _rnn_step(cell, io, at, t)
        elif cell.kind == "gru":
            _gru_step(cell, io, at, t)
        else:
            _lstm_step(cell, io, at, t)
        _commit(cell, io, at, t)
    for m, u in T.grid(rows, cell.hidden):
        io.y_h[d, first + m, u] = h[m, u]
        if cell.kind == "lstm":
            io.y_c[d, first + m, u] = c[m, u]


@T.inline
def _direction(cell, io, d):
    for i in range(io.samples // cell.block):
        _run(cell, io, d, cell.block, i * cell.block)
    for i in range(io.samples % cell.block):
        _run(cell, io, d, 1, io.samples - 1 - i)


def _layer(cell: _Cell) -> PrimFunc:
    steps, samples = tirx.Var("steps", "int64"), tirx.Var("samples", "int64")
    d, h, g = cell.directions, cell.hidden, cell.gates
    extra_width = 3 * h if cell.kind == "lstm" else h

    @T.prim_func(private=True, s_tir=True)
    def recurrent(
        gates: T.handle,
        recurrence: T.handle,
        extra: T.handle,
        sequence_lens: T.handle,
        initial_h: T.handle,
        initial_c: T.handle,
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
        out = T.match_buffer(y, (steps, d, samples, h), "float32", align=4)
        h_n = T.match_buffer(y_h, (d, samples, h), "float32", align=4)
        c_n = T.match_buffer(y_c, (d, samples, h), "float32", align=4)
        io = T.meta_var(_Buffers(x, r, more, lens, h_0, c_0, out, h_n, c_n, steps, samples))
        _direction(cell, io, 0)
        if d == 2:
            _direction(cell, io, 1)

    names = {"extra": "more", "sequence_lens": "lens", "initial_h": "h_0", "initial_c": "c_0"}
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
    return _layer(_Cell("rnn", 1, hidden, direction, chosen, limit, lanes, False, given))


@cache
def gru(
    hidden: int,
    direction: Direction = "forward",
    activations: tuple[Activation, ...] | None = None,
    limit: float | None = None,
    linear_before_reset: bool = False,
    sequence_lens: bool = False,
    initial_h: bool = False,
    lanes: int = 16,
) -> PrimFunc:
    """Kernel (gates, recurrence, hidden_bias?, sequence_lens?, initial_h?) -> y, y_h of a GRU.

    With `linear_before_reset` the third argument is hidden_bias [d, h], Rb of the hidden gate;
    without, there is none.  `activations` are (f, g) a direction (sigmoid, tanh).
    """
    both = 2 if direction == "bidirectional" else 1
    given = _given(extra=linear_before_reset, sequence_lens=sequence_lens, initial_h=initial_h)
    chosen = activations or (_SIGMOID, _TANH) * both
    cell = _Cell("gru", 3, hidden, direction, chosen, limit, lanes, linear_before_reset, given)
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
    return _layer(_Cell("lstm", 4, hidden, direction, chosen, limit, lanes, input_forget, given))
