"""The recurrence of an RNN, GRU or LSTM on a GPU: a block for all units of some samples.

Buffers are laid out as for the CPU's `recurrent` kernels. States lie in shared memory. A few
neighbouring threads share a unit: each has every so many pieces of its column of the weights, in
registers through all steps if they fit, multiplies them by the states of several samples, and adds
up with its neighbours what comes of samples of its own. A step then reads nothing but states, 16
bytes for 4 products of each gate, and inputs that were asked for a step earlier. (Diamos et al.,
"Persistent RNNs: stashing recurrent weights on-chip", 2016.) Weights that do not fit are read in
each step, from a cache, once for all samples of a thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import Any

from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cuda.kernels import warps
from graphopt.targets.cuda.kernels.blocks import covering, wait
from graphopt.targets.cuda.kernels.gemm import AS_LOOP, LEAST_BLOCKS
from graphopt.targets.kernels.recurrent_cell import Buffers, Cell
from graphopt.targets.relax.primfunc import OPAQUE, int64

MAX_HIDDEN = 1024  # threads of a block
_THREADS = 128  # of a block that has fewer units than that
_WIDTH = 4  # states that are read at once
_REGISTERS = 65536  # of a multiprocessor, and of a block at most
_OTHERS = 52  # registers of a thread that hold neither weights nor sums
_FEW = {True: 256, False: 128}
"""Samples that get a thread for each unit and sample, by whether weights are kept: as many as there
are multiprocessors, or twice that where they need not be read in each step."""


@dataclass(frozen=True)
class Sharing:
    """How threads share the work: `lanes` of them each unit, for `rows` samples at once.

    `rows` is 1 or a multiple of `lanes`. Of `width` states that follow one another in turn each
    lane has its own; their weights are `kept` in registers or read in each step.
    """

    lanes: int
    rows: int
    width: int
    kept: bool

    @property
    def own(self) -> int:
        """Samples for which a thread computes what follows from the sums."""
        return max(1, self.rows // self.lanes)

    def pieces(self, hidden: int) -> int:
        """Runs of `width` states that a lane has."""
        return -(-hidden // (self.lanes * self.width))

    def registers(self, hidden: int, gates: int) -> int:
        """Of a thread, that it can do with."""
        weights = self.width * gates * (self.pieces(hidden) if self.kept else 1)
        return weights + self.rows * gates + _OTHERS


Range = tuple[int | None, Sharing]
"""For up to so many samples, or for any number."""


def ranges(hidden: int, gates: int) -> list[Range]:
    """How threads share a layer, for few samples and for more."""
    for most in (64, 96):  # weights of a thread: of more, few threads would fit
        for lanes in (1, 2, 4):
            few, many = (Sharing(lanes, rows, _WIDTH, True) for rows in (1, lanes))
            fits = hidden * lanes * many.registers(hidden, gates) <= _REGISTERS
            if fits and few.pieces(hidden) * _WIDTH * gates <= most:
                return [(_FEW[True], few), (None, many)][lanes == 1 :]
    few = Sharing(1, 1, gcd(_WIDTH, hidden), False)
    # Weights are read once for as many samples as there are registers for.
    many = Sharing(1, 8 if hidden <= MAX_HIDDEN // 2 else 2, few.width, False)
    return [(_FEW[False], few), (None, many)]


class _Unit:
    """Unit `u` of some samples in direction `d`, as far as this thread has a part in it."""

    def __init__(self, cell: Cell, sharing: Sharing, io: Buffers, groups: int) -> None:
        self.cell, self.sharing, self.io = cell, sharing, io
        self._pieces = sharing.pieces(cell.hidden)
        self._pitch = self._pieces * sharing.lanes * sharing.width
        self._block_rows = groups * sharing.rows
        self._inputs = cell.gates + cell.has("attention")
        local, shared = {"scope": "local"}, {"scope": "shared"}
        count = (self._pieces if sharing.kept else 1) * sharing.width
        self._state = T.alloc_buffer([self._block_rows, self._pitch], "float32", **shared)
        self._gated = self._state  # r * h, of a GRU that is not linear
        if cell.kind == "gru" and not cell.option:
            self._gated = T.alloc_buffer([self._block_rows, self._pitch], "float32", **shared)
        self._weights = T.alloc_buffer([cell.gates, count], "float32", **local)
        self._part = T.alloc_buffer([sharing.width], "float32", **local)
        self.acc = T.alloc_buffer([sharing.rows, cell.gates], "float32", **local)
        self._now, self._next = (
            T.alloc_buffer([sharing.own, self._inputs], "float32", **local) for _ in range(2)
        )
        self.h = T.alloc_buffer([sharing.own], "float32", **local)
        self.c = T.alloc_buffer([sharing.own], "float32", **local)

    def place(self, block: Any, d: Any, group: Any, thread: Any) -> None:
        """Say which unit this is, of which samples."""
        lanes, rows = self.sharing.lanes, self.sharing.rows
        width = self.cell.hidden * lanes
        self.d, self.u, self._lane = d, thread // lanes, thread % lanes
        self._thread, self._threads = group * width + thread, self._block_rows // rows * width
        self._mask = warps.neighbours(self._thread, lanes)
        self._first = group * rows
        own = self._lane * self.sharing.own if rows > 1 else int64(0)
        self._rows = [self._first + own + o for o in range(self.sharing.own)]
        samples = [block * self._block_rows + row for row in self._rows]
        alone = self._lane == 0 if rows < lanes else tirx.const(True, "bool")
        self._writes, self._inside = alone, [T.And(alone, s < self.io.samples) for s in samples]
        # Threads beyond the last sample compute it again: all of a block wait for each other.
        self.samples = [T.bind(tirx.min(s, self.io.samples - 1)) for s in samples]

    # ---- before the first step

    def start(self) -> None:
        """Take initial states, weights that are kept, and the inputs of the first step."""
        if self._pitch > self.cell.hidden:
            self._clear()
        for o in range(self.sharing.own):
            T.buffer_store(self.h, self._initial("initial_h", self.io.initial_h, o), [o])
            if self.cell.kind == "lstm":
                T.buffer_store(self.c, self._initial("initial_c", self.io.initial_c, o), [o])
        if self.sharing.kept:
            with T.unroll(int64(0), int64(self._pieces), annotations=AS_LOOP) as piece:
                self._read_weights(piece, piece, 0, self.cell.gates)
            with T.If(T.And(self.io.steps > 0, self.io.samples > 0)), T.Then():
                self._read_inputs(self._next, int64(0))
        self._tell()

    def _clear(self) -> None:
        """Zeros where a row of states ends and its last piece does not."""
        for buffer in dict.fromkeys((self._state, self._gated)):
            with T.serial(int64(0), -(-self._block_rows * self._pitch // self._threads)) as turn:
                at = T.bind(turn * self._threads + self._thread)
                with T.If(at < self._block_rows * self._pitch), T.Then():
                    T.buffer_store(buffer, T.float32(0), [at // self._pitch, at % self._pitch])
        wait()

    def _initial(self, option: str, given: Any, o: int) -> Any:
        if not self.cell.has(option):
            return T.float32(0)
        known = given[self.d, self.samples[o], self.u]
        return T.if_then_else(self.io.samples > 0, known, T.float32(0))

    def _read_weights(self, piece: Any, slot: Any, first: int, count: int) -> None:
        """The weights of one piece of states; 0 beyond the last state."""
        width, hidden = self.sharing.width, self.cell.hidden
        for g in range(first, first + count):
            for v in range(width):
                k = (piece * self.sharing.lanes + self._lane) * width + v
                value = self.io.recurrence[self.d, k, g * hidden + self.u]
                if self._pitch > hidden:
                    value = T.if_then_else(k < hidden, value, T.float32(0))
                T.buffer_store(self._weights, value, [g, slot * width + v])

    def _read_inputs(self, to: Any, step: Any) -> None:
        """The projected inputs of a step, or of the last one."""
        io, cell = self.io, self.cell
        t = cell.time(tirx.min(step, io.steps - 1), io.steps, self.d)
        for o, sample in enumerate(self.samples):
            values = [
                io.gates[t, sample, (self.d * cell.gates + g) * cell.hidden + self.u]
                for g in range(cell.gates)
            ]
            if cell.has("attention"):
                values.append(io.attention[t, sample])
            for g, value in enumerate(values):
                T.buffer_store(to, value, [o, g])

    # ---- within a step

    def _products(self, states: Any, first: int, count: int) -> None:
        """acc[o, g] = state of the sample . weights, for gates [first, first + count)."""
        rows, gates = self.sharing.rows, range(first, first + count)
        for r in range(rows):
            for g in gates:
                T.buffer_store(self.acc, T.float32(0), [r, g])
        if self.sharing.kept:
            with T.unroll(int64(0), int64(self._pieces), annotations=AS_LOOP) as piece:
                self._multiply(states, piece, piece, gates)
            self._share_sums(gates)
            return
        # As many turns as nvcc cannot know: it would keep all weights of an RNN, and spill them.
        turns = tirx.min(int64(self._pieces), self.io.samples * self._pieces)
        with T.serial(int64(0), turns) as piece:
            self._read_weights(piece, 0, first, count)
            self._multiply(states, piece, 0, gates)

    def _multiply(self, states: Any, piece: Any, slot: Any, gates: range) -> None:
        width = self.sharing.width
        column = (piece * self.sharing.lanes + self._lane) * width
        with T.unroll(int64(0), int64(self.sharing.rows), annotations=AS_LOOP) as r:
            with T.vectorized(width) as v:
                T.buffer_store(self._part, states[self._first + r, column + v], [v])
            for v in range(width):
                for g in gates:
                    product = self._part[v] * self._weights[g, slot * width + v]
                    T.buffer_store(self.acc, self.acc[r, g] + product, [r, g])

    def _share_sums(self, gates: range) -> None:
        """Add up what neighbours have of samples: of several, each keeps the sums of its own."""
        acc, rows, distance = self.acc, self.sharing.rows, self.sharing.lanes // 2
        while distance:
            rows //= 2
            upper = (self._lane // distance) % 2 == 1
            for r in range(max(rows, 1)):
                for g in gates:
                    kept = sent = acc[r, g]
                    if rows:
                        kept = T.bind(T.Select(upper, acc[rows + r, g], acc[r, g]))
                        sent = T.bind(T.Select(upper, acc[r, g], acc[rows + r, g]))
                    total = kept + warps.exchanged(sent, distance, self._mask)
                    T.buffer_store(acc, total, [r, g])
            distance //= 2

    def _set(self, o: int, g: int, value: Any) -> Any:
        T.buffer_store(self.acc, value, [o, g])
        return self.acc[o, g]

    def _rnn(self) -> None:
        for o in self._each():
            self._set(o, 0, self.cell.activate(self.d, 0, self._now[o, 0] + self.acc[o, 0]))

    def _gru(self) -> None:
        cell, acc, one = self.cell, self.acc, T.float32(1)
        for o in self._each():
            for g in range(2):
                self._set(o, g, cell.activate(self.d, 0, self._now[o, g] + acc[o, g]))
            if cell.has("attention"):
                self._set(o, 0, one - self._now[o, 3] * acc[o, 0])
        if cell.option:
            bias = self.io.extra[self.d, self.u]
            for o in self._each():
                self._set(o, 2, acc[o, 1] * (bias + acc[o, 2]))
        else:
            with T.If(self._writes), T.Then():
                for o in self._each():
                    at = [self._rows[o], self.u]
                    T.buffer_store(self._gated, acc[o, 1] * self.h[o], at)
            wait()
            self._products(self._gated, 2, 1)
        for o in self._each():
            new = self._set(o, 2, cell.activate(self.d, 1, self._now[o, 2] + acc[o, 2]))
            self._set(o, 0, (one - acc[o, 0]) * new + acc[o, 0] * self.h[o])

    def _lstm(self) -> None:
        cell, acc, d, u = self.cell, self.acc, self.d, self.u
        for o, sample in enumerate(self.samples):
            for g in range(4):
                self._set(o, g, self._now[o, g] + acc[o, g])
            taken = self._set(o, 0, cell.lstm_gate(self.io, d, u, 0, acc[o, 0], self.c[o]))
            forgot = cell.lstm_gate(self.io, d, u, 2, acc[o, 2], self.c[o])
            self._set(o, 2, T.float32(1) - taken if cell.option else forgot)
            self._set(o, 3, cell.activate(d, 1, acc[o, 3]))
            # The new cell; the old one stays where the sequence is over.
            c = self._set(o, 2, acc[o, 2] * self.c[o] + acc[o, 0] * acc[o, 3])
            self._set(o, 1, cell.lstm_gate(self.io, d, u, 1, acc[o, 1], c))
            self._set(o, 0, acc[o, 1] * cell.activate(d, 2, c))
            alive = cell.alive(self.io, sample, self._time)
            T.buffer_store(self.c, T.Select(alive, c, self.c[o]), [o])

    def _each(self) -> Iterator[int]:
        return iter(range(self.sharing.own))

    def step(self, step: Any) -> None:
        """One step of the unit: its state becomes the new one, where the sequence is not over."""
        self._time = T.bind(self.cell.time(step, self.io.steps, self.d))
        if self.sharing.kept:
            for o in self._each():
                for g in range(self._inputs):
                    T.buffer_store(self._now, self._next[o, g], [o, g])
            self._read_inputs(self._next, step + 1)
        of_two_kinds = not self._gated.same_as(self._state)
        self._products(self._state, 0, self.cell.gates - of_two_kinds)
        if not self.sharing.kept:  # these products take far longer
            self._read_inputs(self._now, step)
        {"rnn": self._rnn, "gru": self._gru, "lstm": self._lstm}[self.cell.kind]()
        for o, sample in enumerate(self.samples):
            alive, new = self.cell.alive(self.io, sample, self._time), self.acc[o, 0]
            if self.io.y is not None:
                at = [self._time, self.d, sample, self.u]
                with T.If(self._inside[o]), T.Then():
                    T.buffer_store(self.io.y, T.Select(alive, new, T.float32(0)), at)
            T.buffer_store(self.h, T.Select(alive, new, self.h[o]), [o])
        if self._gated.same_as(self._state):
            wait()  # until all have read the old state
        self._tell()

    def _tell(self) -> None:
        """Let the block see the states of this unit."""
        with T.If(self._writes), T.Then():
            for o in self._each():
                T.buffer_store(self._state, self.h[o], [self._rows[o], self.u])
        wait()

    def finish(self) -> None:
        """Write the last states."""
        for o, sample in enumerate(self.samples):
            with T.If(self._inside[o]), T.Then():
                T.buffer_store(self.io.y_h, self.h[o], [self.d, sample, self.u])
                if self.cell.kind == "lstm":
                    T.buffer_store(self.io.y_c, self.c[o], [self.d, sample, self.u])


def _launch(cell: Cell, sharing: Sharing, io: Buffers) -> None:
    width = cell.hidden * sharing.lanes
    groups = max(1, _THREADS // width)
    registers = sharing.registers(cell.hidden, cell.gates)
    rows = groups * sharing.rows
    # TVM launches a block where there are no samples; it must not conclude that there are some.
    blocks = tirx.max(covering(io.samples, rows), int64(1))
    with (
        T.thread_binding(int64(0), blocks, thread="blockIdx.x") as block,
        T.thread_binding(int64(0), int64(cell.directions), thread="blockIdx.y") as d,
        T.thread_binding(int64(0), int64(groups), thread="threadIdx.y") as group,
        T.thread_binding(int64(0), int64(width), thread="threadIdx.x") as thread,
    ):
        # ptxas would spill for one block more.
        T.attr(thread, LEAST_BLOCKS, max(1, _REGISTERS // (groups * width * registers)))
        unit = _Unit(cell, sharing, io, groups)
        unit.place(block, d, group, thread)
        unit.start()
        with T.serial(int64(0), tirx.min(io.steps, io.steps * io.samples)) as step:
            unit.step(step)
        unit.finish()


def _arguments(cell: Cell, all_steps: bool) -> Buffers:
    """Declare the kernel's parameters, in order."""
    steps, samples = tirx.Var("steps", "int64"), tirx.Var("samples", "int64")
    d, h, wide = cell.directions, cell.hidden, cell.directions * cell.gates * cell.hidden
    state = (d, samples, h)
    extra = (d, 3 * h if cell.kind == "lstm" else h)

    def given(name: str, shape: tuple[Any, ...], there: bool = True, dtype: str = "float32") -> Any:
        if not there:
            return None
        return T.arg(name, T.buffer(tuple(int64(size) for size in shape), dtype))

    return Buffers(
        given("gates", (steps, samples, wide)),
        given("recurrence", (d, h, cell.gates * h)),
        given("extra", extra, cell.has("extra")),
        given("sequence_lens", (samples,), cell.has("sequence_lens"), "int32"),
        given("initial_h", state, cell.has("initial_h")),
        given("initial_c", state, cell.has("initial_c")),
        given("attention", (steps, samples), cell.has("attention")),
        given("y", (steps, *state), all_steps),
        given("y_h", state),
        given("y_c", state, cell.kind == "lstm"),
        steps,
        samples,
    )


@cache
def recurrent(cell: Cell, all_steps: bool = True) -> PrimFunc:
    """Kernel (gates, recurrence, extra?, sequence_lens?, initial_h?, initial_c?, attention?)
    -> y, y_h, and y_c of an LSTM; see the CPU's `recurrent` for what they hold.

    Args:
        all_steps: False leaves y out.

    Raises:
        ValueError: there are more hidden units than a block has threads.
    """
    if cell.hidden > MAX_HIDDEN:
        raise ValueError(f"more than {MAX_HIDDEN} hidden units")
    (limit, sharing), *more = ranges(cell.hidden, cell.gates)
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True, "op_pattern": OPAQUE})
        io = _arguments(cell, all_steps)
        if limit is None:
            _launch(cell, sharing, io)
        else:
            with T.If(io.samples <= limit):
                with T.Then():
                    _launch(cell, sharing, io)
                with T.Else():
                    _launch(cell, more[0][1], io)
    return s_tir.renew_defs(builder.get())
