"""Reductions of TE tensors, with ONNX's treatment of NaN and of nothing to reduce."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te

from graphopt.targets.relax import scalar
from graphopt.targets.relax.lowering import Lowering, int64

Reducer = Callable[..., Any]

total: Reducer = te.comm_reducer(lambda a, b: a + b, lambda t: scalar.const(0, t), name="sum")
product: Reducer = te.comm_reducer(lambda a, b: a * b, lambda t: scalar.const(1, t), name="prod")
greatest: Reducer = te.comm_reducer(
    scalar.maximum, lambda t: scalar.const(scalar.lowest(str(t)), t), name="max"
)
least: Reducer = te.comm_reducer(
    scalar.minimum, lambda t: scalar.const(scalar.highest(str(t)), t), name="min"
)


def reduced(
    read: Callable[..., Any],
    shape: Sequence[Any],
    axes: Sequence[int],
    reducer: Reducer,
    name: str,
    *,
    keepdims: bool = True,
) -> te.Tensor:
    """`read(*indices)` over `shape`, reduced over `axes`, which stay with size 1 if `keepdims`."""
    loops = {axis: te.reduce_axis((0, int64(shape[axis])), f"k{axis}") for axis in axes}
    kept = [1 if axis in loops else size for axis, size in enumerate(shape)]
    if not keepdims:
        kept = [size for axis, size in enumerate(shape) if axis not in loops]

    def element(*indices: Any) -> Any:
        position = iter(indices)
        full = []
        for axis in range(len(shape)):
            own = next(position) if keepdims or axis not in loops else None
            full.append(loops[axis].var if axis in loops else own)
        value = read(*full)
        return reducer(value, axis=list(loops.values())) if loops else value

    return te.compute(kept, element, name=name)


def count(lower: Lowering, shape: Sequence[Any], axes: Sequence[int]) -> Any:
    """How many elements one reduction over `axes` covers, as an int64 expression."""
    size: Any = int64(1)
    for axis in axes:
        size = size * int64(shape[axis])
    return size


def at(tensor: te.Tensor, axes: Sequence[int], indices: Sequence[Any]) -> Any:
    """The element of a reduced tensor (with `keepdims`) that belongs to a full index."""
    return tensor(*(int64(0) if axis in axes else i for axis, i in enumerate(indices)))


def working(tensor: te.Tensor) -> Callable[..., Any]:
    """Reads elements of `tensor` in their working dtype."""
    dtype = scalar.working_dtype(str(tensor.dtype))
    return lambda *indices: scalar.cast(tensor(*indices), dtype)


def axes_of(rank: int, axes: Sequence[int]) -> list[int]:
    """Axes counted from the front, in order."""
    return sorted({axis % rank for axis in axes}) if rank else []
