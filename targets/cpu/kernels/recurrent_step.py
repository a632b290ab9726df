"""One step of an RNN, GRU or LSTM for a block of samples; `recurrent` says what buffers hold."""

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from graphopt.targets.cpu.kernels.panels import registers
from graphopt.targets.cpu.kernels.tiles import Tiles
from graphopt.targets.kernels.recurrent_cell import Cell
from graphopt.targets.kernels.script import inlined


@dataclass(frozen=True)
class BlockedCell(Cell):
    """A layer computed by vectors of `lanes` units, for blocks of samples."""

    lanes: int

    @property
    def blocks(self) -> tuple[int, ...]:
        """Numbers of samples that share each load of a weight, as vector registers allow."""
        return (8, 4, 1) if self.lanes >= 16 else (4, 2, 1) if self.lanes == 8 else (2, 1)

    def tiles(self, columns: int, rows: int) -> Tiles:
        """The columns that `rows` samples are multiplied with at once: as few too many as can be.

        Sums stay in registers, beside a vector of weights and what it is multiplied with or the
        other way round. The fewer vectors, the more loads a product: one alone takes half as long
        again.
        """
        available, _ = registers(self.lanes)
        fitting = [v for v in range(8, 0, -1) if rows * v + min(rows, v) < available]

        def time(tiles: Tiles) -> float:
            return tiles.count * (tiles.vectors + 0.5 / tiles.vectors)

        return min((Tiles(columns, self.lanes, vectors) for vectors in fitting), key=time)

    @property
    def units(self) -> Tiles:
        return Tiles(self.hidden, self.lanes, 1)


@dataclass(frozen=True)
class State:
    """A block of `rows` samples from `first` on: its state and the gates of the current step."""

    first: Any
    rows: int
    d: int
    h: Any
    new_h: Any
    c: Any  # GRU: r * h
    new_c: Any  # GRU: z
    gates: Any


@inlined
def _project(cell, io, at, t, state, gate, count, biased):
    """at.gates of gates [gate, gate + count) = their start + state . recurrence.

    They start from the projected inputs, or from the hidden bias of a GRU (`biased`).
    """
    tiles = T.meta_var(cell.tiles(count * cell.hidden, at.rows))
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


@inlined
def rnn_step(cell, io, at, t):
    _project(cell, io, at, t, at.h, 0, 1, False)
    for m, v in T.grid(at.rows, cell.units.count):
        for j in T.vectorized(cell.units.lanes):
            u = T.meta_var(cell.units.column(v, 0) + j)
            at.new_h[m, u] = cell.activate(at.d, 0, at.gates[m, u])


@inlined
def gru_step(cell, io, at, t):
    hidden = T.meta_var(cell.hidden)
    _project(cell, io, at, t, at.h, 0, 2, False)
    for m, v in T.grid(at.rows, cell.units.count):
        for j in T.vectorized(cell.units.lanes):
            u = T.meta_var(cell.units.column(v, 0) + j)
            z = T.meta_var(cell.activate(at.d, 0, at.gates[m, u]))
            at.new_c[m, u] = (
                T.float32(1) - io.attention[t, at.first + m] * z if cell.has("attention") else z
            )
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


@inlined
def lstm_step(cell, io, at, t):
    hidden = T.meta_var(cell.hidden)
    _project(cell, io, at, t, at.h, 0, 4, False)
    for m, v in T.grid(at.rows, cell.units.count):
        for j in T.vectorized(cell.units.lanes):
            u = T.meta_var(cell.units.column(v, 0) + j)
            old = T.meta_var(at.c[m, u])
            new = T.meta_var(cell.activate(at.d, 1, at.gates[m, 3 * hidden + u]))
            taken = T.meta_var(cell.lstm_gate(io, at.d, u, 0, at.gates[m, u], old))
            kept = T.meta_var(
                T.float32(1) - taken
                if cell.option
                else cell.lstm_gate(io, at.d, u, 2, at.gates[m, 2 * hidden + u], old)
            )
            at.new_c[m, u] = kept * old + taken * new
        for j in T.vectorized(cell.units.lanes):
            u = T.meta_var(cell.units.column(v, 0) + j)
            new = T.meta_var(at.new_c[m, u])
            shown = T.meta_var(cell.lstm_gate(io, at.d, u, 1, at.gates[m, hidden + u], new))
            at.new_h[m, u] = shown * cell.activate(at.d, 2, new)
