"""What a slice takes of an axis."""

from __future__ import annotations

from graphopt.ir import dims
from graphopt.ir.dims import Dim

LONGEST = 10**9
"""What tf2onnx writes for the end of an axis; others write more. No axis is as long."""


def slice_length(size: Dim, start: Dim | None, end: Dim | None, step: Dim | None) -> Dim | None:
    """How many elements `[start:end:step]` takes of an axis of `size`; None if not expressible."""
    if not isinstance(step, int) or start is None or end is None:
        return None
    if all(isinstance(x, int) for x in (size, start, end)):
        return len(sliced(size, start, end, step))  # type: ignore[arg-type]
    if step <= 0:
        if step == -1 and start == -1 and isinstance(end, int) and end < -(2**31):
            return size
        return None
    first, last = (_clamped(bound, size) for bound in (start, end))
    if first is None or last is None:
        return None
    # A longer step takes one element too; the sum in the quotient must stay within int64.
    return dims.maximum(dims.ceildiv(last - first, min(step, 2**31)), 0)


def sliced(size: int, start: int, end: int, step: int) -> range:
    """The positions that `[start:end:step]` takes of an axis of `size`.

    Unlike NumPy, ONNX starts a walk backwards from before the first element at the first element.
    """
    if step > 0:
        return range(*slice(start, end, step).indices(size))
    stop = None if end < -size else end
    return range(*slice(max(start, -size), stop, step).indices(size))


def _clamped(bound: Dim, size: Dim) -> Dim | None:
    """A slice bound as a position in [0, size]."""
    if isinstance(bound, int):
        if bound <= -(2**31):
            return 0
        if bound >= LONGEST:
            return size
        position: Dim = bound if bound >= 0 else size + bound
        return dims.maximum(position, 0) if bound < 0 else dims.minimum(position, size)
    if dims.is_nonnegative(bound):
        return dims.minimum(bound, size)
    return None
