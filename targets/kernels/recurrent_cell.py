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

    def activate(self, d, which: int, value):
        """Activation `which` (f, g, h are 0, 1, 2) of direction `d`, its input limited.

        The cell, input of h, is not: ONNX Runtime limits the gates alone. `d` may be an expression.
        """
        if self.limit is not None and which < 2:
            value = clip(value, -self.limit, self.limit)
        per_direction = len(self.activations) // self.directions
        first, *second = self.activations[which::per_direction]
        if isinstance(d, int):
            return (first, *second)[d](value)
        if not second or second[0] == first:
            return first(value)
        return T.Select(d == 1, second[0](value), first(value))

    def has(self, name: str) -> bool:
        """Whether the optional buffer `name` is among the arguments."""
        return name in self.optional

    def alive(self, io, sample, t):
        """Boolean expression: the sequence of `sample` has a step `t`."""
        if not self.has("sequence_lens"):
            return T.bool(True)
        return T.Cast("int64", io.lens[sample]) > t

    def lstm_gate(self, io, d, u, gate: int, total, c):
        """Input, output or forget gate (0, 1, 2) of one unit, which may see the cell `c`."""
        if self.has("extra"):
            total = total + io.extra[d, gate * self.hidden + u] * c
        return self.activate(d, 0, total)

    def time(self, step, steps, d):
        """The time at which direction `d`, which may be an expression, makes its `step`."""
        if self.direction == "reverse":
            return steps - 1 - step
        if isinstance(d, int) or self.directions == 1:
            return steps - 1 - step if self.directions == 2 and d == 1 else step
        return T.Select(d == 1, steps - 1 - step, step)


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
