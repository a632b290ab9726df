"""How the looked-up rows of a bag become one row, element by element."""

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

from tvm.script import tirx as T

from graphopt.targets.kernels.bounds import OutOfBounds, check_policy, is_valid, row_of
from graphopt.targets.kernels.elementary import maximum

Mode = Literal["sum", "mean", "max"]

OUT_OF_RANGE = "EmbeddingBag: an index lies outside the table"
BAD_OFFSETS = "EmbeddingBag: offsets must not decrease and must lie in [0, number of ids]"

_ACCUMULATOR = {
    "float16": "float32",
    "bfloat16": "float32",
    "float32": "float32",
    "float64": "float64",
}


@dataclass(frozen=True)
class Pooling:
    """How the rows of a bag become one row.

    mode: sum and mean add in the order of the ids; max propagates NaN.  Half-precision tables are
        accumulated in float32.
    weighted: every looked-up row is first multiplied by its own weight (sum and mean); a mean still
        divides by the number of rows.
    padding_idx: ids that read this row do not count, in any mode; negative counts from the end.
    empty: the value of a bag in which nothing counts.  PyTorch gives 0; a ReduceMax over nothing
        gives -inf, a ReduceMean NaN.
    by_id: only `padding_idx` itself is padding, no other id that reads the same row.
    oob: what an id outside the table does; a row of zeros ("zero") counts as a row.
    message, offsets_message: what RuntimeError says about a bad id, and about bad offsets.
    """

    mode: Mode = "sum"
    weighted: bool = False
    padding_idx: int | None = None
    empty: float = 0.0
    by_id: bool = False
    oob: OutOfBounds = "error"
    message: str = OUT_OF_RANGE
    offsets_message: str = BAD_OFFSETS

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"unknown pooling mode {self.mode!r}; known: {get_args(Mode)}")
        if self.weighted and self.mode == "max":
            raise ValueError("per-sample weights have no meaning under max pooling")


@dataclass(frozen=True)
class Plan:
    """The static facts of one kernel."""

    rows: int
    dim: int
    dtype: str
    index_dtype: str
    pooling: Pooling

    def __post_init__(self) -> None:
        check_policy(self.pooling.oob, self.index_dtype)
        if self.dtype not in _ACCUMULATOR:
            known = ", ".join(_ACCUMULATOR)
            raise ValueError(f"cannot pool rows of {self.dtype!r}; known: {known}")
        if self.dim < 1:
            raise ValueError(f"cannot pool rows of {self.dim} elements")
        padding = self.pooling.padding_idx
        if padding is not None and not -self.rows <= padding < self.rows:
            raise ValueError(f"padding_idx {padding} lies outside a table of {self.rows} rows")

    @property
    def accumulator(self) -> str:
        return _ACCUMULATOR[self.dtype]

    @property
    def nothing(self) -> float:
        """What the accumulator holds before the first row."""
        return -inf if self.pooling.mode == "max" else 0.0

    def is_valid(self, index, rows):
        """Boolean expression: `index` reads one of `rows` rows and not a row of zeros."""
        return is_valid(index, rows) if self.pooling.oob == "zero" else T.bool(True)

    def counts(self, index):
        """Boolean expression: `index`, or the row that it reads, is not padding."""
        padding = self.pooling.padding_idx
        if padding is None:
            return T.bool(True)
        if self.pooling.by_id:
            return T.Not(index == padding)
        is_padding = row_of(index, self.rows, self.pooling.oob) == padding % self.rows
        return T.Not(T.bitwise_and(self.is_valid(index, self.rows), is_padding))

    def weight(self, weights, bag, i, position):
        """The weight of id `i` of a bag, `position` among all ids; 2-D weights are [bag, i]."""
        if not self.pooling.weighted:
            return T.Cast(self.accumulator, 1)
        return weights[bag, i] if len(weights.shape) == 2 else weights[position]

    def combined(self, so_far, element, weight):
        """The accumulator after one more row; max keeps a NaN once it has seen one."""
        value = T.Cast(self.accumulator, element)
        if self.pooling.mode == "max":
            return maximum(so_far, value)
        if self.pooling.weighted:
            value = value * T.Cast(self.accumulator, weight)
        return so_far + value

    def pooled(self, total, count):
        """The element to store, from the accumulator and the number of rows in it."""
        value = total / T.Cast(self.accumulator, count) if self.pooling.mode == "mean" else total
        empty = T.Cast(self.accumulator, self.pooling.empty)
        return T.Cast(self.dtype, T.Select(count == 0, empty, value))
