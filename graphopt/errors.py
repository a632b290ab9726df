"""Every error a user of graphopt can meet.

    GraphoptError
    ├── InvalidModelError      the file is not a usable ONNX model
    │   └── UnsafePathError    it refers to a file outside its own folder
    ├── UnsupportedOpError     an op, or this use of it, is not handled (names the node)
    ├── SpecError              a pass or target specification does not parse
    ├── PassError              a pass failed; carries the path of a reproducer
    ├── InputError             `run` was given arrays that do not fit the signature
    │   ├── IdError            an id lies outside its table
    │   └── TraceError         a log of requests does not fit the model
    ├── ArtifactError          an artifact is missing, damaged or for another machine
    ├── VerificationError      two models do not give the same answers
    ├── BudgetExceededError    no result meets the accuracy budget
    ├── TuningCacheError       a tuning cache is missing or is something else
    │   └── TuningMissError    it knows nothing of a kernel that it was to know
    └── OutputError            the result could not be written

A message says what is wrong, where (the user's own node, input or file) and what to try.
`exit_code` is what the command line returns for it.
"""

from __future__ import annotations


class GraphoptError(Exception):
    """Base of all errors raised on purpose; anything else is a bug in graphopt."""

    exit_code = 1


class InvalidModelError(GraphoptError):
    """The model file cannot be read or breaks the ONNX rules."""


class UnsafePathError(InvalidModelError):
    """The model refers to a file outside its own folder."""


class UnsupportedOpError(GraphoptError):
    """An op, or one way of using it, is not supported.

    Attributes:
        op: the op type, such as `Loop`.
        reason: one clause, such as "the trip count is only known at run time".
        where: the source nodes concerned, as named in the user's model.
    """

    def __init__(self, op: str, reason: str, where: tuple[str, ...] = ()) -> None:
        self.op, self.reason, self.where = op, reason, where
        at = f" (node {', '.join(repr(name) for name in where[:3])})" if where else ""
        super().__init__(f"{op}{at}: {reason}")


class SpecError(GraphoptError):
    """A textual specification (pipeline, target) does not parse; points at the place."""

    exit_code = 2

    def __init__(self, message: str, text: str = "", position: int | None = None) -> None:
        if position is not None:
            message = f"{message}\n  {text}\n  {' ' * position}^"
        super().__init__(message)


class PassError(GraphoptError):
    """A pass raised or left an invalid graph behind.

    Attributes:
        reproducer: a model file and pipeline that make it happen again, or None.
    """

    exit_code = 70

    def __init__(self, message: str, reproducer: str | None = None) -> None:
        self.reproducer = reproducer
        super().__init__(message)


class InputError(GraphoptError):
    """The arrays given to `run` do not fit the model's signature."""


class IdError(InputError):
    """An id lies outside the table it indexes."""


class TraceError(InputError):
    """A log of requests does not fit the model."""


class ArtifactError(GraphoptError):
    """A compiled artifact is missing, damaged, or was built for another machine."""


class VerificationError(GraphoptError):
    """Two models that should agree do not."""

    exit_code = 3


class BudgetExceededError(GraphoptError):
    """No result meets the budget that was asked for."""

    exit_code = 4


class TuningCacheError(GraphoptError):
    """The file named as a tuning cache is missing or is something else."""


class TuningMissError(TuningCacheError):
    """The tuning cache knows nothing of a kernel, and that was to be an error."""

    exit_code = 5


class OutputError(GraphoptError):
    """The result could not be written; nothing was left behind."""
