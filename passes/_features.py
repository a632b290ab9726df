"""Which feature vectors a value consists of, followed through ops that only move them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.passes._concats import axis_of, concat
from graphopt.passes._shapes import reshaped, slice_bounds
from graphopt.rewrite import NoMatch, Rewriter


@dataclass(frozen=True)
class Feature:
    """A feature vector of each sample.

    Attributes:
        source: a value that holds one or more of them for each sample, side by side.
        index: which of them.
        matrix: what it is multiplied with: a constant [d, d], or one [g, d, d] and which of it.
    """

    source: Value
    index: int
    matrix: tuple[Value, int | None] | None = None


def size_of(value: Value) -> int | None:
    """Elements of `value` for each index of its first axis, if that is known."""
    sizes = value.shape[1:] if value.shape else ()
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) if value.rank and len(known) == len(sizes) else None


def features(value: Value, dim: int) -> list[Feature]:
    """The vectors of `dim` elements that `value` [n, …] has for each sample, in order."""
    return _moved(value, dim) or [Feature(value, k) for k in range((size_of(value) or 0) // dim)]


def _moved(value: Value, dim: int) -> list[Feature] | None:
    """The same, if the op that makes `value` only moves them, or multiplies them with matrices."""
    node = value.producer
    data = None if node is None or not node.inputs else node.inputs[0]
    if node is None or data is None or not _holds(data, dim, value):
        return None
    if node.op == "Reshape":
        return features(data, dim) if size_of(data) == size_of(value) else None
    if node.op == "Concat":
        parts = node.operands
        whole = all(_holds(part, dim, value) for part in parts)
        return [f for part in parts for f in features(part, dim)] if whole and leads(node) else None
    if node.op == "MatMul":
        return _multiplied(node, data, dim)
    places = _places(node, value, data, dim)
    return None if places is None else [features(data, dim)[k] for k in places]


def _holds(data: Value, dim: int, value: Value) -> bool:
    """True if `data` holds whole vectors for the samples of `value`."""
    size = size_of(data)
    return (
        size is not None and size % dim == 0 and (data.shape or ())[:1] == (value.shape or ())[:1]
    )


def leads(node: Node) -> bool:
    """True if a Concat joins what its operands hold for a sample, one operand after the other."""
    axis = axis_of(node)
    return bool(axis) and set(node.output.tensor.dims[1:axis]) <= {1}


def _multiplied(node: Node, data: Value, dim: int) -> list[Feature] | None:
    """Features multiplied with one constant matrix, or each with one of its own."""
    weights, found = node.inputs[1], features(data, dim)
    if weights is None or weights.const is None or weights.const.shape[-2:] != (dim, dim):
        return None
    if data.tensor.dims[-1] != dim or any(f.matrix is not None for f in found):
        return None
    if weights.rank == 2:
        return [Feature(f.source, f.index, (weights, None)) for f in found]
    if weights.const.shape != (len(found), dim, dim) or data.tensor.dims[-2] != 1:
        return None
    return [Feature(f.source, f.index, (weights, k)) for k, f in enumerate(found)]


def _places(node: Node, value: Value, data: Value, dim: int) -> Iterator[int] | None:
    """Which vectors of `data` a Slice, a Split or a Gather takes."""
    sizes = [size for size in data.tensor.dims[1:] if isinstance(size, int)]
    if sizes[-1:] == [] or sizes[-1] % dim:
        return None
    grid = np.arange(math.prod(sizes) // dim).reshape(*sizes[:-1], sizes[-1] // dim)
    if node.op == "Gather":
        index, axis = node.const(1), node.attr("axis") % len(data.tensor.dims)
        last = axis == grid.ndim and sizes[-1] != 1
        if index is None or axis == 0 or last or not _within(index, grid.shape[axis - 1]):
            return None
        return iter(grid.take(index, axis - 1).reshape(-1).tolist())
    bounds = slice_bounds(node) if node.op == "Slice" else _part(node, value)
    for axis, (start, end) in (bounds or {}).items():
        unit = dim if axis == grid.ndim else 1
        if axis == 0 or start % unit or end % unit:
            return None
        grid = grid.take(range(start // unit, end // unit), axis - 1)
    return None if bounds is None else iter(grid.reshape(-1).tolist())


def _within(index: np.ndarray, size: int) -> bool:
    """False for positions that the model is to fail on."""
    return bool(((-size <= index) & (index < size)).all())


def _part(node: Node, value: Value) -> dict[int, tuple[int, int]] | None:
    """The axis of a Split, and where the output `value` of it begins and ends."""
    if node.op != "Split" or value.rank is None:
        return None
    axis = node.attr("axis") % value.rank
    sizes = [part.tensor.dims[axis] for part in node.outputs]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(sizes):
        return None
    at = node.outputs.index(value)
    return {axis: (sum(known[:at]), sum(known[: at + 1]))}


def joined(rw: Rewriter, sources: list[Value], dim: int) -> Value | NoMatch:
    """The vectors of all `sources`, one source after the other, as [n, f, dim]."""
    if all(source.rank == 3 and source.tensor.dims[2] == dim for source in sources):
        return concat(rw, sources, 1)
    samples, sizes = sources[0].tensor.dims[0], [size_of(source) or 0 for source in sources]
    rows: list[Value] = []
    for source, size in zip(sources, sizes):
        row = reshaped(rw, source, (source.tensor.dims[0], size))
        if isinstance(row, NoMatch):
            return row
        rows.append(row)
    return reshaped(rw, concat(rw, rows, 1), (samples, sum(sizes) // dim, dim))


def starts_of(sources: list[Value], dim: int) -> dict[Value, int]:
    """Where the vectors of each source begin in `joined(…)`."""
    starts, total = {}, 0
    for source in sources:
        starts[source] = total
        total += (size_of(source) or 0) // dim
    return starts
