"""Elementwise operands at the store of a kernel: what they do to its result."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

Step = Literal["mul", "add"]
"""What an operand does to the result: multiply it, or add to it, element by element."""
MAX_STEPS = 2


def checked_steps(steps: tuple[Step, ...]) -> None:
    """ValueError if there are more steps than MAX_STEPS, or one that does not exist."""
    if len(steps) > MAX_STEPS or not set(steps) <= set(get_args(Step)):
        raise ValueError(f"at most {MAX_STEPS} steps out of {get_args(Step)}, not {steps}")


def combined(
    steps: Sequence[Step], value: Any, operands: Sequence[Any], row: Any, column: Any
) -> Any:
    """`value`, changed by the element of each operand at its place as its step says."""
    for step, operand in zip(steps, operands):
        other = operand[row, column]
        value = value * other if step == "mul" else value + other
    return value
