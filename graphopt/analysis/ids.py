"""Which elements of the graph inputs index something, and what values of them are valid.

An id travels from an input through casts, slices and reshapes to the op that looks it up. Following
it says which random inputs are valid and which table an out-of-range id was meant for. The analysis
is a best effort: what it cannot follow, it does not report.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from graphopt.ir.content import known_ints
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import TensorType

SAME_ELEMENTS = frozenset(
    ["Cast", "CastLike", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile"]
    + ["Transpose", "Gather", "GatherElements", "GatherND", "Slice", "Split", "Dropout"]
)

# Up to here every integer has a float of its own.
_EXACT = {"bfloat16": 2**8, "float16": 2**11, "float32": 2**24, "float64": 2**53}


# Lookups in tables of codes, which the ids come after: codes, what they stand for, ids.
_CODED = frozenset(
    f"graphopt::{op}{what}"
    for op in ("Product", "Quantized")
    for what in ("Lookup", "EmbeddingBag")
)


@dataclass(frozen=True)
class IdRange:
    """Elements of one graph input whose values must lie in `[low, high)`.

    Attributes:
        region: `(axis, start, stop)` of the input; empty for all of it.
        sorted_axis: for offsets into another tensor: the axis along which they must not decrease,
            starting from `low`; None for ids.
        node: what looks the ids up, named as in the user's model.
    """

    region: tuple[tuple[int, int, int], ...]
    low: Dim
    high: Dim
    node: tuple[str, ...] = ()
    sorted_axis: int | None = None


@dataclass(frozen=True)
class Origin:
    """Where a value's elements come from: a region of an input, plus a number in [low, high].

    `axes` maps the value's axes to the input's; an axis made by reshaping maps to None.
    """

    source: Value
    axes: tuple[int | None, ...] | None
    region: tuple[tuple[int, int, int], ...] = ()
    shift: tuple[int, int] = (0, 0)

    def cut(self, axis: int | None, start: int, stop: int) -> Origin:
        """The part between two positions of an axis of the input."""
        if axis is None:
            return self
        for known, first, last in self.region:
            if known == axis:
                start, stop = first + start, min(first + stop, last)
        region = [entry for entry in self.region if entry[0] != axis]
        return replace(self, region=tuple(sorted([*region, (axis, start, stop)])))


def id_ranges(graph: Graph) -> dict[str, list[IdRange]]:
    """The ranges of valid ids and offsets, by graph input.

    Raises:
        nothing: an index that cannot be traced to an input is left out.
    """
    known = origins(graph)
    found: dict[str, list[IdRange]] = {}
    for node in graph.walk():
        for origin, low, high in _traced(node, known):
            ids = IdRange(origin.region, low - origin.shift[0], high - origin.shift[1], node.where)
            found.setdefault(origin.source.name, []).append(ids)
        for origin, high in _offsets(node, known):
            axis = (origin.source.rank or 1) - 1
            offsets = IdRange(origin.region, 0, high + 1, node.where, axis)
            found.setdefault(origin.source.name, []).append(offsets)
    return {name: list(dict.fromkeys(ranges)) for name, ranges in found.items()}


def origins(graph: Graph) -> dict[Value, Origin]:
    """Where the elements of values come from that hold those of one graph input, moved about."""
    found = {
        value: Origin(value, None if value.rank is None else tuple(range(value.rank)))
        for value in graph.inputs
        if isinstance(value.type, TensorType)
    }
    for node in graph.walk():
        _follow(node, found)
    return found


def region_text(name: str, rank: int, region: tuple[tuple[int, int, int], ...]) -> str:
    """`x[:, 3]`, or `x` for all of it."""
    parts = {axis: str(a) if b == a + 1 else f"{a}:{b}" for axis, a, b in region}
    if not parts:
        return name
    return f"{name}[{', '.join(parts.get(axis, ':') for axis in range(rank))}]"


def inexact_ids(graph: Graph) -> list[tuple[Value, IdRange, int]]:
    """Inputs that carry ids as floats too narrow for them: input, ids, first number lost.

    A float32 holds every integer up to 2**24; 16777217 already reads as 16777216, another row.
    """
    inputs = {value.name: value for value in graph.inputs}
    found = []
    for name, ranges in id_ranges(graph).items():
        exact = _EXACT.get(inputs[name].dtype)
        for ids in ranges:
            if exact is not None and isinstance(ids.high, int) and ids.high - 1 > exact:
                found.append((inputs[name], ids, exact + 1))
    return found


# ----------------------------------------------------------------------- what is looked up


def _lookups(node: Node) -> Iterator[tuple[Value, Dim, Dim]]:
    """Values that `node` uses as positions, with the range they must lie in."""
    if node.op in ("Gather", "GatherElements", "ScatterElements"):
        data, indices = node.inputs[0], node.inputs[1]
        if data is not None and indices is not None and data.shape:
            size = data.shape[node.attr("axis", 0)]
            yield indices, 0, size
    elif node.op == "GatherND":
        yield from _tuples(node)
    elif node.op == "OneHot" and node.inputs[0] is not None and node.inputs[1] is not None:
        depth = known_ints(node.inputs[1].content)
        if depth:
            yield node.inputs[0], 0, depth[0]
    elif node.op == "graphopt::EmbeddingBag":
        table, ids = node.inputs[0], node.inputs[1]
        if table is not None and ids is not None and table.shape:
            yield ids, 0, table.shape[0]
    elif node.op in _CODED:
        codes, ids = node.inputs[0], node.inputs[2]
        if codes is not None and ids is not None and codes.shape:
            yield ids, 0, codes.shape[0]


def _tuples(node: Node) -> Iterator[tuple[Value, Dim, Dim]]:
    """What a GatherND uses as positions of one axis: its indices, or the parts they are joined of.

    Exporters write `x[rows, positions]` as such a join.
    """
    data, indices = node.inputs[0], node.inputs[1]
    if data is None or indices is None or not data.shape or not indices.shape:
        return
    first, made = node.attr("batch_dims", 0), indices.producer
    if indices.shape[-1] == 1:
        yield indices, 0, data.shape[first]
    elif (
        made is not None
        and made.op == "Concat"
        and made.attr("axis") in (-1, len(indices.shape) - 1)
    ):
        parts = made.operands
        if all(part.rank and part.tensor.dims[-1] == 1 for part in parts):
            yield from ((part, 0, data.shape[first + k]) for k, part in enumerate(parts))


def _traced(node: Node, origins: dict[Value, Origin]) -> Iterator[tuple[Origin, Dim, Dim]]:
    """`_lookups` of ids whose origin is known; those of stacked tables column by column."""
    for value, low, high in _lookups(node):
        if value in origins:
            yield origins[value], low, high
    rows = node.const(1) if node.op in ("graphopt::EmbeddingBags", "graphopt::TableRows") else None
    if rows is not None and node.op == "graphopt::EmbeddingBags":
        fields = zip(node.inputs[4:], rows.tolist())
        yield from ((origins[ids], 0, size) for ids, size in fields if ids in origins)
        return
    ids = node.input(0)
    if rows is not None and ids is not None and ids in origins:
        origin = origins[ids]
        for column, high in enumerate(rows.tolist()):
            axis = None if origin.axes is None else origin.axes[1]
            yield origin.cut(axis, column, column + 1), 0, high


def _offsets(node: Node, origins: dict[Value, Origin]) -> Iterator[tuple[Origin, Dim]]:
    """Where values come from that say at what position of another tensor, of that length, a piece
    of it starts or ends.
    """
    if node.op == "graphopt::EmbeddingBags":
        yield from _offsets_of_fields(node, origins)
        return
    if node.op == "graphopt::EmbeddingBag":
        ids, bounds = node.inputs[1], (node.input(2),)
    elif node.op in _CODED:
        ids, bounds = node.inputs[2], (node.input(3),)
    elif node.op == "Slice" and node.graph is not None and node.graph.owner is not None:
        ids, bounds = node.inputs[0], (node.inputs[1], node.inputs[2])  # type: ignore[assignment]
    else:
        return
    if ids is None or not isinstance(ids.type, TensorType) or not ids.shape:
        return
    for value in bounds:
        if value is not None and value in origins:
            yield origins[value], ids.shape[0]


def _offsets_of_fields(node: Node, origins: dict[Value, Origin]) -> Iterator[tuple[Origin, Dim]]:
    """`_offsets` of a matrix with a row for each field, which may be made of vectors."""
    matrix, sizes = node.inputs[3], [v.tensor.dims[0] for v in node.inputs[4:] if v is not None]
    assert matrix is not None
    reshape = matrix.producer
    joined = reshape.inputs[0] if reshape is not None and reshape.op == "Reshape" else None
    if matrix in origins and origins[matrix].axes is not None:
        axis = origins[matrix].axes[0]  # type: ignore[index]
        for field, size in enumerate(sizes):
            yield origins[matrix].cut(axis, field, field + 1), size
    elif joined is not None and joined.producer is not None and joined.producer.op == "Concat":
        for value, size in zip(joined.producer.inputs, sizes):
            if value is not None and value in origins:
                yield origins[value], size


# ----------------------------------------------------------------------- following values


def _follow(node: Node, origins: dict[Value, Origin]) -> None:
    """Note where the outputs of `node`, and what its subgraphs are given, come from."""
    if node.op in ("Loop", "Scan"):
        _enter_body(node, origins)
    data = node.input(0)
    if node.op in ("Add", "Sub"):
        shifted = _shifted(node, origins)
        if shifted is not None:
            origins[node.output] = shifted
    elif node.op in ("Where", "Concat"):
        operands = node.inputs[1:] if node.op == "Where" else node.inputs
        traced = [origins[v] for v in operands if v is not None and v in origins]
        if len(traced) == 1:
            origins[node.output] = replace(traced[0], axes=None)
    elif node.op in SAME_ELEMENTS and data is not None and data in origins:
        for position, value in enumerate(node.outputs):
            origins[value] = _moved(node, position, origins[data])


def _moved(node: Node, position: int, origin: Origin) -> Origin:
    """The origin of output `position` of an op that only moves elements about."""
    axes = origin.axes
    if node.op in ("Cast", "CastLike", "Identity", "Dropout") or axes is None:
        return origin
    if node.op == "Transpose":
        perm = node.attr("perm") or range(len(axes))[::-1]
        return replace(origin, axes=tuple(axes[k] for k in perm))
    if node.op == "Slice":
        return _sliced(node, origin, axes)
    if node.op == "Split":
        return _split(node, position, origin, axes)
    if node.op == "Gather":
        return _gathered(node, origin, axes)
    if node.op in ("Squeeze", "Unsqueeze", "Reshape", "Flatten", "Expand", "Tile"):
        return replace(origin, axes=_same_sizes(node, axes))
    return replace(origin, axes=None)


def _same_sizes(node: Node, axes: tuple[int | None, ...]) -> tuple[int | None, ...] | None:
    """Axes before and after a reshape, matched by size where that is unambiguous."""
    old, new = node.inputs[0], node.output
    if old is None or old.shape is None or new.shape is None:
        return None
    kept = [(size, axis) for size, axis in zip(old.shape, axes) if size != 1]
    sizes = [size for size, _ in kept]
    if sizes != [size for size in new.shape if size != 1]:
        return None
    rest = iter(kept)
    return tuple(next(rest)[1] if size != 1 else None for size in new.shape)


def _sliced(node: Node, origin: Origin, axes: tuple[int | None, ...]) -> Origin:
    starts, ends = (known_ints(v.content) if v is not None else None for v in node.inputs[1:3])
    chosen = node.input(3)
    where = known_ints(chosen.content) if chosen is not None else list(range(len(starts or ())))
    data = node.inputs[0]
    if starts is None or ends is None or where is None or data is None or data.shape is None:
        return origin
    for start, end, axis in zip(starts, ends, where):
        size = data.shape[axis]
        if not isinstance(size, int):
            continue
        first, last, step = slice(start, end).indices(size)
        if step == 1:
            origin = origin.cut(axes[axis], first, last)
    return origin


def _split(node: Node, position: int, origin: Origin, axes: tuple[int | None, ...]) -> Origin:
    axis = node.attr("axis", 0)
    sizes = [value.shape[axis] if value.shape else None for value in node.outputs]
    if not all(isinstance(size, int) for size in sizes):
        return origin
    start = sum(sizes[:position])  # type: ignore[arg-type]
    return origin.cut(axes[axis], start, start + sizes[position])  # type: ignore[operator]


def _gathered(node: Node, origin: Origin, axes: tuple[int | None, ...]) -> Origin:
    axis, indices = node.attr("axis", 0) % len(axes), node.const(1)
    rank = node.inputs[1].rank if node.inputs[1] is not None else None
    if rank is None:
        return replace(origin, axes=None)
    data = node.inputs[0]
    size = data.shape[axis] if data is not None and data.shape else None
    if indices is not None and indices.size and (isinstance(size, int) or indices.min() >= 0):
        positions = indices % size if isinstance(size, int) else indices
        if np.ptp(positions) < positions.size:
            origin = origin.cut(axes[axis], int(positions.min()), int(positions.max()) + 1)
    return replace(origin, axes=axes[:axis] + (None,) * rank + axes[axis + 1 :])


def _shifted(node: Node, origins: dict[Value, Origin]) -> Origin | None:
    """`x + constant` or `x - constant`, the constant being one number or a range of them."""
    a, b = node.inputs[:2]
    if node.op == "Add" and a is not None and a.const is not None:
        a, b = b, a
    if a is None or b is None or a not in origins or b.const is None or not b.const.size:
        return None
    if b.const.dtype.kind not in "iu":
        return None
    low, high = int(b.const.min()), int(b.const.max())
    if node.op == "Sub":
        low, high = -high, -low
    origin = origins[a]
    shift = (origin.shift[0] + low, origin.shift[1] + high)
    return replace(origin, axes=_same_sizes_of(a, node.output, origin.axes), shift=shift)


def _same_sizes_of(
    old: Value, new: Value, axes: tuple[int | None, ...] | None
) -> tuple[int | None, ...] | None:
    return axes if old.rank == new.rank else None


def _enter_body(node: Node, origins: dict[Value, Origin]) -> None:
    """What the body of a Loop or Scan is given in terms of what the node reads."""
    body = node.subgraphs[0]
    skip = node.attr("num_scan_inputs", 0) if node.op == "Scan" else 0
    first = 2 if node.op == "Loop" else 0
    for outer, inner in zip(node.inputs[first : len(node.inputs) - skip], body.inputs[first:]):
        if outer is not None and outer in origins:
            origins[inner] = replace(origins[outer], axes=None)
    for outer, inner in zip(node.inputs[len(node.inputs) - skip :], body.inputs[-skip:]):
        if skip and outer is not None and outer in origins:
            origins[inner] = replace(origins[outer], axes=None)
