"""Ops that read one position along an axis: one for all, or one for each row of the batch."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.ir.graph import Node, Value
from graphopt.ir.types import TensorType
from graphopt.passes._shapes import ints_of, reshaped, slice_bounds
from graphopt.rewrite import Rewriter


@dataclass(frozen=True)
class Place:
    """Axes of a value: the one that a position is read along, and the batch where that matters."""

    axis: int
    batch: int | None = None


@dataclass(frozen=True)
class Selection:
    """The position that is read.

    Attributes:
        source: what it is read of.
        place: along which axis.
        position: the same for all of it, from the end if negative; None if `positions` says it.
        positions: int64, one element for each position along `place.batch`.
    """

    source: Value
    place: Place
    position: int | None = None
    positions: Value | None = None

    def of(self, rw: Rewriter, value: Value, place: Place) -> Value:
        """The position of `value`, the axis being kept."""
        if self.positions is None:
            return rw.op.Gather(value, rw.ints(self.position or 0), axis=place.axis)
        dims = value.tensor.dims
        if (place.batch, place.axis) == (0, 1):
            rows = rw.op.Reshape(self.positions, rw.ints(-1, 1))
            rest = rw.op.GatherND(value, rows, batch_dims=1)
            kept = reshaped(rw, rest, at_one(value.tensor, place.axis).shape)
            assert isinstance(kept, Value)  # `can_take` asked for sizes that are known
            return kept
        ones = [-1 if axis == place.batch else 1 for axis in range(len(dims))]
        widths = [d if isinstance(d, int) else 1 for d in at_one(value.tensor, place.axis).dims]
        widths = [1 if axis == place.batch else d for axis, d in enumerate(widths)]
        rows = rw.op.Reshape(self.positions, rw.ints(*ones))
        return rw.op.GatherElements(value, rw.op.Expand(rows, rw.ints(*widths)), axis=place.axis)

    def can_take(self, value: Value, place: Place) -> bool:
        """True if `of` can write the selection from `value` with constants."""
        if self.positions is None:
            return True
        others = [d for k, d in enumerate(value.tensor.dims) if k not in (place.axis, place.batch)]
        return all(isinstance(d, int) for d in others)


def at_one(type_: TensorType, axis: int) -> TensorType:
    """The type of one position along `axis`."""
    dims = type_.dims
    return TensorType(type_.dtype, (*dims[:axis], 1, *dims[axis + 1 :]))


def selection(node: Node) -> Selection | None:
    """What `node` reads one position of; None if it does not."""
    source = node.inputs[0]
    if source is None or source.shape is None or source.const is not None:
        return None
    return {"Gather": _gather, "Slice": _slice, "GatherElements": _elements, "GatherND": _nd}[
        node.op_type
    ](node, source)


def _gather(node: Node, source: Value) -> Selection | None:
    position = ints_of(node.inputs[1])
    if position is None or len(position) != 1 or node.operands[1].rank not in (0, 1):
        return None
    place = Place(node.attr("axis") % len(source.tensor.dims))
    return Selection(source, place, position=position[0])


def _slice(node: Node, source: Value) -> Selection | None:
    bounds = slice_bounds(node)
    if bounds is None or len(bounds) != 1:
        return None
    ((axis, (start, end)),) = bounds.items()
    size = source.tensor.dims[axis]
    if isinstance(size, int) and end - start == 1:
        return Selection(source, Place(axis), position=start)
    return None


def _elements(node: Node, source: Value) -> Selection | None:
    """GatherElements(x, Expand(positions)), the positions having one axis other than of size 1."""
    indices, dims = node.inputs[1], source.tensor.dims
    assert indices is not None
    axis = node.attr("axis") % len(dims)
    if indices.producer is None or indices.producer.op != "Expand" or indices.shape is None:
        return None
    positions = indices.producer.inputs[0]
    assert positions is not None
    if positions.rank != len(dims) or indices.shape != at_one(source.tensor, axis).dims:
        return None
    batches = [k for k, d in enumerate(positions.tensor.dims) if d != 1]
    if len(batches) != 1 or batches[0] == axis or positions.dtype != "int64":
        return None
    return Selection(source, Place(axis, batches[0]), positions=positions)


def _nd(node: Node, source: Value) -> Selection | None:
    """GatherND(x, positions[B, 1], batch_dims=1)"""
    positions = node.inputs[1]
    assert positions is not None
    if node.attr("batch_dims") != 1 or positions.rank != 2 or len(source.tensor.dims) < 2:
        return None
    if positions.shape != (source.tensor.dims[0], 1) or positions.dtype != "int64":
        return None
    return Selection(source, Place(1, 0), positions=positions)
