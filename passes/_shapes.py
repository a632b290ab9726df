"""Shapes as constants: what a Reshape or a Slice can be told without knowing the batch."""

from __future__ import annotations

from graphopt.ir.content import known_ints
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.ir.types import TensorType
from graphopt.rewrite import NoMatch, Rewriter

INT64_MAX = 2**63 - 1


def static_shape(type_: TensorType) -> tuple[int, ...]:
    """The shape of a type whose every size is known."""
    return tuple(dim for dim in type_.dims if isinstance(dim, int))


def reshape_target(data: TensorType, result: TensorType, infer: bool = True) -> list[int] | None:
    """The constant shape operand that reshapes `data` to `result`, None if there is none.

    One unknown size becomes -1; several become 0 (copied from the same axis of `data`), with at
    most one -1 among them.

    Args:
        infer: -1 may be used; without, another number of elements than that of `result` is an
            error.
    """
    if data.shape is None or result.shape is None:
        return None
    if 0 in data.shape or 0 in result.shape:
        return _target_of_none(data.shape, result.shape)
    symbolic = [axis for axis, dim in enumerate(result.shape) if not isinstance(dim, int)]
    target = [dim if isinstance(dim, int) else 0 for dim in result.shape]
    if len(symbolic) == 1 and infer:
        target[symbolic[0]] = -1
        return target
    changed = [k for k in symbolic if k >= len(data.shape) or data.shape[k] != result.shape[k]]
    if len(changed) > infer:
        return None
    for axis in changed:
        target[axis] = -1
    return target


def reshaped(rw: Rewriter, value: Value, shape: tuple[Dim, ...] | None) -> Value | NoMatch:
    """`value` with another shape, or as it is where it has that; None is a shape not known."""
    if shape is not None and value.shape == shape:
        return value
    target = reshape_target(value.tensor, TensorType(value.dtype, shape))
    if target is None:
        return NoMatch("its shape cannot be written with constants")
    return rw.op.Reshape(value, rw.ints(*target))


def _target_of_none(data: tuple[Dim, ...], result: tuple[Dim, ...]) -> list[int] | None:
    """`reshape_target` of no elements, where -1 would have no size: all but numbers is copied."""
    target = [dim if isinstance(dim, int) else 0 for dim in result]
    copied = [axis for axis, size in enumerate(target) if size == 0]
    same = all(axis < len(data) and data[axis] == result[axis] for axis in copied)
    return target if same else None


def without_ones(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The sizes other than 1."""
    return tuple(dim for dim in dims if dim != 1)


def ints_of(value: Value | None) -> list[int] | None:
    """The elements of a small integer tensor if all are known."""
    return None if value is None else known_ints(value.content)


def slice_bounds(node: Node) -> dict[int, tuple[int, int]] | None:
    """`{axis: (start, end)}` of a Slice with constant bounds and steps of 1, None for any other.

    An end of `INT64_MAX` means the end of the axis. Bounds are counted from the front where the
    axis has a known size.
    """
    data = node.inputs[0]
    starts, ends = ints_of(node.inputs[1]), ints_of(node.inputs[2])
    if data is None or data.shape is None or starts is None or ends is None:
        return None
    axes = ints_of(node.input(3)) if node.input(3) is not None else list(range(len(starts)))
    steps = ints_of(node.input(4)) if node.input(4) is not None else [1] * len(starts)
    if axes is None or steps is None or any(step != 1 for step in steps):
        return None
    bounds = {}
    for start, end, axis in zip(starts, ends, axes):
        size = data.shape[axis]
        if isinstance(size, int):
            start, end, _ = slice(start, end).indices(size)
            end = max(start, end)
        elif end >= 2**31 - 1:
            end = INT64_MAX
        bounds[axis % len(data.shape)] = (start, end)
    return bounds
