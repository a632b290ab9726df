"""What an index outside its table means, as TIR expressions shared by the lookup kernels.

An index `i` of a table with `rows` rows is valid in [-rows, rows); a negative one counts from the
end, as in ONNX Gather.  Every expression takes and returns int64 and cannot overflow: an index is
compared or clamped before `rows` is added to it.
"""

from typing import Literal, get_args

from tvm.script import tirx as T

OutOfBounds = Literal["error", "clamp", "zero"]
"""error: the kernel stops with the caller's message (RuntimeError in Python).
clamp: the nearest valid row is read; a table without rows has none, and the kernel stops.
zero: the row reads as zeros.
"""


def check_policy(oob: str, index_dtype: str) -> None:
    """ValueError unless `oob` and `index_dtype` are ones the lookup kernels know."""
    if oob not in get_args(OutOfBounds):
        raise ValueError(f"unknown out-of-bounds policy {oob!r}; known: {get_args(OutOfBounds)}")
    if index_dtype not in ("int32", "int64"):
        raise ValueError(f"indices must be int32 or int64, not {index_dtype!r}")


def is_valid(index, rows):
    """Boolean expression: `index` names a row."""
    return T.bitwise_and(index >= -rows, index < rows)


def is_allowed(index, rows, oob: OutOfBounds):
    """Boolean expression: under `oob` the kernel may go on with `index`."""
    if oob == "error":
        return is_valid(index, rows)
    return T.bool(True) if oob == "zero" else T.int64(rows) > 0


def row_of(index, rows, oob: OutOfBounds):
    """The row in [0, rows), rows > 0, that `index` reads.

    Under "clamp" any index has one; under the other policies the caller has checked `is_valid`.
    """
    inside = T.max(T.min(index, rows - 1), -rows) if oob == "clamp" else index
    return T.Select(inside < 0, inside + rows, inside)
