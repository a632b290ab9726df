"""Which symbolic sizes of the inputs must be equal.

Exporters name the batch of each input apart (`b`, `s9`, `unk__302`). Where an op needs two such
sizes to agree, they are one size; without this no two batches could be proved equal. What the names
say (`declared_sizes`) comes last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import gcd
from typing import NamedTuple

from graphopt.errors import InvalidModelError
from graphopt.ir import aligned_axes, declared_sizes, dims, reshaped_sizes
from graphopt.ir.control import narrow_carried
from graphopt.ir.dims import Dim, Sym
from graphopt.ir.graph import Graph, Node
from graphopt.ir.infer import MISFITS
from graphopt.ir.types import TensorType


def unify_sizes(graph: Graph) -> dict[str, Dim]:
    """Express sizes of inputs that must agree by one another, throughout the graph.

    Returns:
        what each size that was replaced became: another one, one plus a number, or a number.
    """
    order = [name for v in graph.inputs for d in v.shape or () for name in sorted(dims.symbols(d))]
    rank = {name: k for k, name in reversed(list(enumerate(order)))}
    replaced: dict[str, Dim] = {}
    claims = declared_sizes.said(graph)
    while True:
        known: dict[str, _Shifted] = {}
        for a, b in (pair for node in graph.walk() for pair in _required_equal(node, rank)):
            a, b = _find(a, known), _find(b, known)
            if a.name != b.name:
                keep, drop = sorted((a, b), key=lambda size: rank[size.name])
                known[drop.name] = _Shifted(keep.name, keep.plus - drop.plus)
        found = {name: _find(size, known) for name, size in known.items()}
        changes = {name: Sym.named(size.name) + size.plus for name, size in found.items()}
        changes = changes or _multiplied(graph, rank)
        changes = changes or _reshaped(graph, rank) or _believed(graph, claims)
        if not changes:
            return replaced
        replaced = {k: dims.substitute(dim, changes.get) for k, dim in replaced.items()} | changes
        _replace(graph, changes)
        for node in graph.walk():
            narrow_carried(node)
        claims = _about_others(claims, changes)


def _believed(graph: Graph, claims: Mapping[str, Dim]) -> dict[str, Dim]:
    """What names say that some op needs, if the rest of the model fits it."""
    refused: list[dict[str, Dim]] = []
    for found in declared_sizes.questions(graph, claims):
        if found in refused:
            continue
        try:
            _replace(graph.clone(), found)
        except (InvalidModelError, *MISFITS):
            refused.append(found)
        else:
            return found
    return {}


def _about_others(claims: Mapping[str, Dim], changes: Mapping[str, Dim]) -> dict[str, Dim]:
    """What `claims` say of the sizes that are left after `changes`."""
    found = {}
    for name, size in claims.items():
        now, size = changes.get(name, Sym.named(name)), dims.substitute(size, changes.get)
        if dims.is_name(now) and now != size:
            found[now.text] = size
    return found


def _multiplied(graph: Graph, rank: dict[str, int]) -> dict[str, Dim]:
    """Sizes that are one number, since the weights of a layer have so many rows."""
    pairs = (pair for node in graph.walk() if (pair := aligned_axes.added_up(node)))
    for a, b in pairs:
        found = reshaped_sizes.number(a - b, set(rank))
        if found:
            return found
    return {}


def _reshaped(graph: Graph, rank: dict[str, int]) -> dict[str, Dim]:
    """What sizes are because reshapes keep the number of elements, and made-up ones with them."""
    made_up = reshaped_sizes.made_up_sizes(graph, set(rank))
    if not made_up:
        return {}
    order = {**rank, **dict.fromkeys(made_up, len(rank))}
    pairs = [pair for node in graph.walk() for pair in _required_equal(node, order)]
    equal: dict[str, Dim] = {}
    for a, b in pairs:
        for one, other in ((a, b), (b, a)):
            if one.name in made_up and other.name in rank and not one.plus:
                equal[one.name] = Sym.named(other.name) + other.plus
    numbers = reshaped_sizes.solved(graph, set(rank), equal)
    return {**equal, **numbers} if numbers else {}


class _Shifted(NamedTuple):
    """The size called `name`, plus a number."""

    name: str
    plus: int


def _find(size: _Shifted, known: dict[str, _Shifted]) -> _Shifted:
    while size.name in known:
        by = known[size.name]
        size = _Shifted(by.name, by.plus + size.plus)
    return size


def _required_equal(node: Node, rank: dict[str, int]) -> Iterator[tuple[_Shifted, _Shifted]]:
    """Pairs of sizes of inputs that this node needs to be equal (or, for ops that broadcast, 1)."""
    if node.domain:
        sizes = [size for dim in _bags(node) if (size := _shifted(dim)) and size.name in rank]
        yield from ((sizes[0], other) for other in sizes[1:])
        return
    strict = node.op_type == "Concat"
    summed = aligned_axes.added_up(node)
    for column in [*aligned_axes.columns(node), *([list(summed)] if summed else [])]:
        for dims_ in _of_same_factor(column):
            sizes = [size for dim in dims_ if (size := _shifted(dim)) and size.name in rank]
            # What broadcasts may be 1 in one operand; a sum that happens to be 1 is more likely.
            sizes = [size for size in sizes if strict or size.plus == 0]
            yield from ((sizes[0], other) for other in sizes[1:] if other != sizes[0])


def _of_same_factor(column: list[Dim]) -> Iterable[list[Dim]]:
    """Sizes that are multiples of the same number, divided by that: 4*a and 4*b as a and b."""
    groups: dict[int, list[Dim]] = {}
    for dim in column:
        if isinstance(dim, Sym):
            factor = gcd(*dim.terms.values())
            groups.setdefault(factor, []).append(dims.floordiv(dim, factor))
    return groups.values()


def _bags(node: Node) -> tuple[Dim, Dim] | tuple[()]:
    """How many bags of k ids there are by their offsets 0, k, 2k, … and by the ids.

    With another number of ids the last bag would not be of k ids, or begin beyond them.
    """
    offsets, ids = node.input(2), node.input(1)
    bag = node.op == "graphopt::EmbeddingBag" and not node.attr("include_last_offset", 0)
    strided = None if offsets is None or ids is None or not bag else offsets.producer
    if strided is None or strided.op != "Range" or ids is None or not ids.shape:
        return ()
    found = [None if v is None or v.content is None else v.content.item() for v in strided.inputs]
    start, limit, step = found
    if start != 0 or limit is None or not isinstance(step, int) or step < 1:
        return ()
    by_offsets = dims.exact_div(limit, step)
    by_ids = dims.exact_div(ids.shape[0], step)
    return () if by_offsets is None or by_ids is None else (by_offsets, by_ids)


def _shifted(dim: Dim) -> _Shifted | None:
    """A dim that is one named size plus a number, None for any other."""
    plus = dim.terms.get((), 0) if isinstance(dim, Sym) else 0
    rest = dim - plus
    return _Shifted(rest.text, plus) if dims.is_name(rest) else None


def _replace(graph: Graph, sizes: dict[str, Dim]) -> None:
    """Replace sizes in every type and content of the graph."""

    def renamed(type_: object) -> object:
        if not isinstance(type_, TensorType) or type_.shape is None:
            return type_
        shape = tuple(dims.substitute(dim, sizes.get) for dim in type_.shape)
        return TensorType(type_.dtype, shape)

    graphs = [graph, *(s for node in graph.walk() for s in node.subgraphs)]
    for value in (v for g in graphs for v in g.inputs):
        value.type = renamed(value.type)  # type: ignore[assignment]
    for node in graph.walk():
        for value in node.outputs:
            value.type = renamed(value.type)  # type: ignore[assignment]
    graph._propagate(graph.walk())
