"""What becomes of a sum of products at the store of a kernel: an activation, and operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tvm import tirx

from graphopt.targets.kernels.activation import Activation

Op = Literal["mul", "add"]
MAX_STEPS = 2
_OPERANDS = ("first", "second")
_NO_ACTIVATION = Activation()


@dataclass(frozen=True)
class Step:
    """An elementwise operand at the store.

    Attributes:
        op: it multiplies the result, or is added to it.
        every: so many rows of the result, one after the other, share a row of the operand; all of
            them if it is 0.
    """

    op: Op
    every: int = 1

    def __post_init__(self) -> None:
        if self.op not in get_args(Op) or self.every < 0:
            raise ValueError(f"a step is one of {get_args(Op)} by 0 or more rows, not {self}")

    def rows(self, own: Any, fewer: Any) -> Any:
        """Rows of the operand: `own` are those of the result, `fewer` is a size that is free."""
        return (1, own)[self.every] if self.every < 2 else fewer

    def __call__(self, value: Any, operand: Any, row: Any, column: Any) -> Any:
        """The result after it."""
        if self.every != 1:
            row = tirx.truncdiv(row, self.every) if self.every else 0
        other = operand[row, column]
        return value * other if self.op == "mul" else value + other


@dataclass(frozen=True)
class Epilogue:
    """An activation between steps, the operands of which are other inputs of the kernel.

    Attributes:
        before: how many of the steps come before the activation.

    A kernel has the buffers `columns`, float32[activation.columns, width], and `first` and
    `second`, float32[rows, width]. Those that it has no use for are `unused`, the others are
    `given` together as (columns, first, second).

    Raises:
        ValueError: there are more than MAX_STEPS steps.
    """

    activation: Activation = _NO_ACTIVATION
    steps: tuple[Step, ...] = ()
    before: int = 0

    def __post_init__(self) -> None:
        if not self.before <= len(self.steps) <= MAX_STEPS:
            raise ValueError(f"at most {MAX_STEPS} steps, not {len(self.steps)}")

    @staticmethod
    def of(attrs: Mapping[str, Any]) -> Epilogue:
        """What the attributes of a Dense say: activation, alpha, beta, steps and before."""
        constants = attrs.get("alpha"), attrs.get("beta")
        activation = Activation(attrs.get("activation", "none"), *constants)
        return Epilogue(activation, tuple(attrs.get("steps", ())), attrs.get("before", 0))

    @property
    def unused(self) -> tuple[str, ...]:
        """The buffers that a kernel does not need."""
        return (() if self.activation.columns else ("columns",)) + _OPERANDS[len(self.steps) :]

    def rows(self, number: int, own: Any, fewer: Any) -> Any:
        """Rows of an operand; see `Step.rows`."""
        return self.steps[number].rows(own, fewer) if number < len(self.steps) else own

    def __call__(self, value: Any, given: Sequence[Any], row: Any, column: Any) -> Any:
        """The result at a place, of a simple expression."""
        value = self.begin(value, given, row, column)
        return self.finish(self.activate(value, given, column), given, row, column)

    def begin(self, value: Any, given: Sequence[Any], row: Any, column: Any) -> Any:
        """What the activation is applied to."""
        for step, operand in zip(self.steps[: self.before], given[1:]):
            value = step(value, operand, row, column)
        return value

    def activate(self, value: Any, given: Sequence[Any], column: Any) -> Any:
        """The activation of a value."""
        constants = [given[0][k, column] for k in range(self.activation.columns)]
        return self.activation(value, *constants)

    def finish(self, value: Any, given: Sequence[Any], row: Any, column: Any) -> Any:
        """What comes after the activation."""
        for step, operand in zip(self.steps[self.before :], given[1 + self.before :]):
            value = step(value, operand, row, column)
        return value


PLAIN = Epilogue()
