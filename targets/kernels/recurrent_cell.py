"""What an RNN, GRU or LSTM layer computes, and the buffers it does that with."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from tvm.script import tirx as T

from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.elementary import clip

Direction = Literal["forward", "reverse", "bidirectional"]


@dataclass(frozen=True)
class Cell:
    """The static facts of one layer."""

    kind: str
    gates: int
    hidden: int
    direction: Direction
    activations: tuple[Activation, ...]  # all of the first direction, then of the second
    limit: float | None
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

    def alive(self, io, sample, t):
        """Boolean expression: the sequence of `sample` has a step `t`."""
        if not self.has("sequence_lens"):
            return T.bool(True)
        return T.Cast("int64", io.lens[sample]) > t

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
class Buffers:
    """The arguments of a kernel; `extra` is the GRU's hidden bias or the LSTM's peepholes."""

    gates: Any
    recurrence: Any
    extra: Any
    lens: Any
    initial_h: Any
    initial_c: Any
    attention: Any
    y: Any
    y_h: Any
    y_c: Any
    steps: Any
    samples: Any
