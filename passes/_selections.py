"""Which elements of a value another one consists of, followed through ops that only move them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from graphopt.ir.dims import Dim, product
from graphopt.ir.graph import Node, Value
from graphopt.passes._shapes import slice_bounds


@dataclass(frozen=True)
class Selection:
    """A value made of elements of `source`, sample by sample.

    Attributes:
        source: a value whose first axis counts samples; its other sizes are static.
        positions: for each element, where it lies in a sample of `source`. Without the axis of the
            samples, which stands at `batch`.
        nodes: what was followed.
    """

    source: Value
    positions: np.ndarray
    batch: int
    nodes: frozenset[Node]

    def shape(self, samples: Dim) -> list[Dim]:
        """The shape of the value."""
        sizes: list[Dim] = list(self.positions.shape)
        return [*sizes[: self.batch], samples, *sizes[self.batch :]]


def selection(value: Value, is_source: Callable[[Value], bool]) -> Selection | None:
    """Where the elements of `value` come from; None if they are not all moved from one source."""
    if is_source(value):
        sizes = [size for size in value.tensor.dims[1:] if isinstance(size, int)]
        if len(sizes) < len(value.tensor.dims) - 1:
            return None
        return Selection(value, np.arange(math.prod(sizes)).reshape(sizes), 0, frozenset())
    node = value.producer
    if node is None or node.op not in _MOVES or value.shape is None:
        return None
    parts = [selection(v, is_source) for v in node.inputs[: _DATA.get(node.op, 1)] if v is not None]
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    try:
        found = _MOVES[node.op](node, *known)
    except IndexError:
        return None  # for the model to fail on
    if found is None or list(value.shape) != found.shape(found.source.tensor.dims[0]):
        return None
    return Selection(found.source, found.positions, found.batch, found.nodes | {node})


def _moved(before: Selection, positions: np.ndarray, batch: int | None = None) -> Selection:
    batch = before.batch if batch is None else batch
    return Selection(before.source, positions, batch, before.nodes)


def _static_axis(before: Selection, axis: int) -> int | None:
    """The axis of `positions` that is `axis` of the value, None for that of the samples."""
    axis %= before.positions.ndim + 1
    return None if axis == before.batch else axis - (axis > before.batch)


def _transpose(node: Node, before: Selection) -> Selection:
    rank = before.positions.ndim + 1
    perm = list(node.attr("perm") or range(rank)[::-1])
    order = [axis - (axis > before.batch) for axis in perm if axis != before.batch]
    return _moved(before, before.positions.transpose(order), perm.index(before.batch))


def _reshape(node: Node, before: Selection) -> Selection | None:
    """A reshape that keeps the axis of the samples, and as many elements before it."""
    samples, shape = before.source.tensor.dims[0], node.output.tensor.dims
    leading = product(before.positions.shape[: before.batch])
    for axis, size in enumerate(shape):
        rest = [dim for k, dim in enumerate(shape) if k != axis and isinstance(dim, int)]
        fits = len(rest) == len(shape) - 1 and product(rest) == before.positions.size
        if size == samples and fits and product(shape[:axis]) == leading:
            return _moved(before, before.positions.reshape(rest), axis)
    return None


def _gather(node: Node, before: Selection) -> Selection | None:
    index, axis = node.const(1), _static_axis(before, node.attr("axis"))
    if index is None or axis is None:
        return None
    passed = index.ndim - 1 if axis < before.batch else 0
    return _moved(before, np.take(before.positions, index, axis), before.batch + passed)


def _gather_elements(node: Node, before: Selection) -> Selection | None:
    """Constant positions, expanded over the samples: the same for each of them."""
    indices = node.inputs[1]
    expand = None if indices is None else indices.producer
    index = expand.const(0) if expand is not None and expand.op == "Expand" else None
    if index is None or (before.batch, before.positions.ndim) != (0, 1):
        return None
    if index.size != index.shape[-1] or _static_axis(before, node.attr("axis")) is None:
        return None
    return _moved(before, before.positions[index.reshape(-1)])


def _gather_nd(node: Node, before: Selection) -> Selection | None:
    index = node.const(1)
    if index is None or node.attr("batch_dims") or before.batch < index.shape[-1]:
        return None
    taken = before.positions[tuple(np.moveaxis(index, -1, 0))]
    return _moved(before, taken, before.batch - index.shape[-1] + index.ndim - 1)


def _slice(node: Node, before: Selection) -> Selection | None:
    bounds = slice_bounds(node)
    positions = before.positions
    for axis, (start, end) in (bounds or {}).items():
        place = _static_axis(before, axis)
        if place is None:
            return None
        positions = np.take(positions, range(positions.shape[place])[start:end], place)
    return None if bounds is None else _moved(before, positions)


def _concat(node: Node, *parts: Selection) -> Selection | None:
    first, axis = parts[0], _static_axis(parts[0], node.attr("axis"))
    if axis is None or len({(p.source, p.batch, p.positions.ndim) for p in parts}) != 1:
        return None
    nodes = frozenset[Node]().union(*(part.nodes for part in parts))
    joined = np.concatenate([part.positions for part in parts], axis)
    return Selection(first.source, joined, first.batch, nodes)


_DATA = {"Concat": None}  # how many inputs hold data: all of them; of other ops, the first
_MOVES: dict[str, Callable[..., Selection | None]] = {
    "Concat": _concat,
    "Flatten": _reshape,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
