"""Which element of a source an element of a value is, through ops that only move elements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from graphopt.ir.dims import Dim, exact_div
from graphopt.ir.graph import Node, Value
from graphopt.passes._concats import restacked
from graphopt.passes._shapes import ints_of, slice_bounds


@dataclass(frozen=True)
class Atom:
    """A loop of `extent` steps along `axis` of the source, each `stride` positions long."""

    axis: int
    extent: Dim
    stride: int


Axes = tuple[tuple[Atom, ...], ...]


@dataclass(frozen=True)
class View:
    """A value whose elements are `scale` times elements of `source`.

    Attributes:
        axes: for each axis of the value the loops that it is made of, the outermost first.
        starts: the position in the source, by axis, of the first element.
    """

    source: Value
    axes: Axes
    starts: tuple[int, ...]
    scale: float = 1.0

    def permuted(self, perm: Sequence[int]) -> View:
        """The view with its axes in another order."""
        return replace(self, axes=tuple(self.axes[axis] for axis in perm))


def whole(axis: int, extent: Dim) -> tuple[Atom, ...]:
    """All of one axis of a source."""
    return () if extent == 1 else (Atom(axis, extent, 1),)


def views_of(value: Value) -> Iterator[View]:
    """The value as a view of itself, of what it is moved from, and so on."""
    chain: list[tuple[Node, Value]] = []
    current = value
    while current.shape is not None:
        dims = current.tensor.dims
        axes = tuple(whole(axis, dim) for axis, dim in enumerate(dims))
        view: View | None = View(current, axes, (0,) * len(dims))
        for node, result in reversed(chain):
            view = None if view is None else _through(node, result, view)
        if view is None:
            return
        yield view
        producer = current.producer
        source = None if producer is None else _moved(producer)
        if producer is None or source is None:
            return
        chain.append((producer, current))
        current = source


_MOVES = frozenset(["Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"])


def _moved(node: Node) -> Value | None:
    """What `node` moves or scales the elements of."""
    if node.op in _MOVES:
        return node.inputs[0]
    if node.op == "Concat":
        stacked = restacked(node)
        return None if stacked is None else stacked.whole
    factor = factor_of(node)
    return None if factor is None else factor[0]


def factor_of(node: Node) -> tuple[Value, float] | None:
    """(x, factor) of a multiplication or division by a number."""
    if node.op not in ("Mul", "Div"):
        return None
    for x, number in (node.inputs, node.inputs[::-1])[: 2 if node.op == "Mul" else 1]:
        if x is None or number is None or number.const is None or number.const.size != 1:
            continue
        if x.type == node.output.type:
            factor = float(number.const.item())
            return x, factor if node.op == "Mul" else 1 / factor
    return None


def _through(node: Node, result: Value, view: View) -> View | None:
    """The view of the same source that `result`, an output of `node`, is."""
    factor = factor_of(node)
    if factor is not None:
        return replace(view, scale=view.scale * factor[1])
    if node.op == "Transpose":
        return view.permuted(node.attr("perm") or list(range(len(view.axes)))[::-1])
    if node.op in ("Reshape", "Squeeze", "Unsqueeze"):
        return _regrouped(view, result.tensor.dims)
    if node.op == "Concat":
        stacked = restacked(node)
        apart = None if stacked is None else _regrouped(view, stacked.apart)
        if stacked is None or apart is None:
            return None
        return _regrouped(apart.permuted(stacked.perm), result.tensor.dims)
    bounds = _bounds(node, result)
    if bounds is None:
        return None
    axis, start, count = bounds
    axes = list(view.axes)
    if len(axes[axis]) != 1:
        return None
    (atom,) = axes[axis]
    axes[axis] = () if count == 1 else (replace(atom, extent=count),)
    if len(axes) > len(result.tensor.dims):
        del axes[axis]
    starts = list(view.starts)
    starts[atom.axis] += start * atom.stride
    return replace(view, axes=tuple(axes), starts=tuple(starts))


def _bounds(node: Node, result: Value) -> tuple[int, int, int] | None:
    """(axis, start, count) of a node that takes a run of positions along one axis."""
    source = node.inputs[0]
    assert source is not None
    dims = source.tensor.dims
    if node.op == "Slice":
        bounds = slice_bounds(node)
        if bounds is None or len(bounds) != 1:
            return None
        ((axis, (start, end)),) = bounds.items()
        return (axis, start, end - start) if isinstance(dims[axis], int) else None
    axis = node.attr("axis") % len(dims)
    size = dims[axis]
    if not isinstance(size, int):
        return None
    if node.op == "Split":
        sizes = [output.tensor.dims[axis] for output in node.outputs]
        if not all(isinstance(part, int) for part in sizes):
            return None
        place = node.outputs.index(result)
        return axis, sum(sizes[:place]), sizes[place]
    position, index = ints_of(node.inputs[1]), node.inputs[1]
    if position is None or index is None or index.rank != 0:
        return None
    return axis, position[0] % size, 1


def _regrouped(view: View, dims: Sequence[Dim]) -> View | None:
    """The view with its loops dealt out anew, in order, to axes of sizes `dims`."""
    atoms = [atom for axis in view.axes for atom in axis]
    axes = []
    for dim in dims:
        group: list[Atom] = []
        rest: Dim = dim
        while rest != 1:
            if not atoms:
                return None
            atom = atoms.pop(0)
            left = exact_div(rest, atom.extent)
            if left is None:
                inner = exact_div(atom.extent, rest)
                if not isinstance(inner, int):
                    return None
                atoms.insert(0, replace(atom, extent=inner))
                atom, left = Atom(atom.axis, rest, atom.stride * inner), 1
            group.append(atom)
            rest = left
        axes.append(tuple(group))
    return None if atoms else replace(view, axes=tuple(axes))
