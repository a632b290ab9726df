"""The kernel calls of a compiled program and what they cost, as a manifest holds them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

from graphopt.analysis.cost import INSTRUCTIONS, UnknownCost, factor, fused_cost
from graphopt.analysis.lookups import Features, Lookup, lookups_of
from graphopt.ir.dims import Dim, Sym
from graphopt.ir.graph import Graph, Node

Size = Union[int, list[Any], None]
"""A number, the terms of a polynomial [coefficient, factor…], or None where it is not known.

A factor is the name of a size, or [function, size, size]."""

_FUNCTIONS: Mapping[str, Callable[[int, int], int]] = {
    "floordiv": operator.floordiv,
    "min": min,
    "max": max,
}


def describe(graph: Graph, program: Sequence[tuple[str, Sequence[Node]]]) -> list[dict[str, Any]]:
    """An entry for each call of a kernel that computes some nodes of `graph`.

    What a node costs counts for the last one of several calls that compute it.
    """
    features = Features(graph)
    last = {node: call for call, (_, nodes) in enumerate(program) for node in nodes}
    return [
        _entry(features, kernel, nodes, [node for node in nodes if last[node] == call])
        for call, (kernel, nodes) in enumerate(program)
    ]


def _entry(
    features: Features, kernel: str, nodes: Sequence[Node], done: Sequence[Node]
) -> dict[str, Any]:
    """The entry of a call that has a part in `nodes` and after which some are `done`."""
    sources = dict.fromkeys(name for node in nodes for name in node.where)
    entry = {
        "kernel": kernel,
        "ops": [node.op for node in nodes],
        "sources": list(sources),
        "features": sorted(features.of(value for node in nodes for value in node.outputs)),
        "lookups": [
            _lookup(features, found, node in done) for node in nodes for found in lookups_of(node)
        ],
    }
    try:
        cost = fused_cost(done)
    except UnknownCost:
        return {**entry, "flops": None, "bytes": None}
    return {**entry, "flops": to_json(cost.flops), "bytes": to_json(cost.read + cost.written)}


def _lookup(features: Features, found: Lookup, counts: bool) -> dict[str, Any]:
    return {
        "table": found.name,
        "rows": found.rows,
        "dim": found.dim,
        "bits": found.bits,
        "features": sorted(features.naming(found)),
        "bytes": to_json(found.moved if counts else 0),
    }


def to_json(dim: Dim) -> Size:
    """A dim as lists of numbers and names."""
    if not isinstance(dim, Sym):
        return int(dim)
    return [
        [coefficient, *(_factor(atom) for atom in monomial)]
        for monomial, coefficient in dim.terms.items()
    ]


def _factor(atom: Any) -> Any:
    return [atom.fn, *map(to_json, atom.args)] if atom.fn else atom.name


def evaluate(size: Size, sizes: Mapping[str, int]) -> int | None:
    """The number that `size` is for given sizes; None if it depends on one that is not given."""
    if size is None or isinstance(size, int):
        return size
    total = 0
    for coefficient, *factors in size:
        for name in factors:
            value = sizes.get(name) if isinstance(name, str) else _applied(name, sizes)
            if value is None:
                return None
            coefficient *= value
        total += coefficient
    return total


def operations(flops: Size, sizes: Mapping[str, int]) -> dict[str, int] | None:
    """How many operations there are by each instruction that does some; "" is float32's.

    None if that depends on a size that is not given.
    """
    others = dict.fromkeys(map(factor, INSTRUCTIONS), 0)
    plain = evaluate(flops, {**sizes, **others})
    if plain is None:
        return None
    found = {"": plain}
    for name in INSTRUCTIONS:
        count = (evaluate(flops, {**sizes, **others, factor(name): 1}) or 0) - plain
        if count:
            found[name] = count
    return found


def _applied(factor: list[Any], sizes: Mapping[str, int]) -> int | None:
    function, *operands = factor
    a, b = (evaluate(operand, sizes) for operand in operands)
    return None if a is None or b is None else _FUNCTIONS[function](a, b)
