"""The kernel calls of a compiled program and what they cost, as a manifest holds them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Union

from graphopt.analysis.cost import UnknownCost, fused_cost
from graphopt.ir.dims import Dim, Sym
from graphopt.ir.graph import Node

Size = Union[int, list[Any], None]
"""A number, the terms of a polynomial [coefficient, factor…], or None where it is not known.

A factor is the name of a size, or [function, size, size]."""

_FUNCTIONS: Mapping[str, Callable[[int, int], int]] = {
    "floordiv": operator.floordiv,
    "min": min,
    "max": max,
}


def describe(program: Iterable[tuple[str, Sequence[Node]]]) -> list[dict[str, Any]]:
    """An entry for each call of a kernel that computes some nodes."""
    return [_entry(kernel, nodes) for kernel, nodes in program]


def _entry(kernel: str, nodes: Sequence[Node]) -> dict[str, Any]:
    sources = dict.fromkeys(name for node in nodes for name in node.where)
    entry = {"kernel": kernel, "ops": [node.op for node in nodes], "sources": list(sources)}
    try:
        cost = fused_cost(nodes)
    except UnknownCost:
        return {**entry, "flops": None, "bytes": None}
    return {**entry, "flops": to_json(cost.flops), "bytes": to_json(cost.read + cost.written)}


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
        for factor in factors:
            value = sizes.get(factor) if isinstance(factor, str) else _applied(factor, sizes)
            if value is None:
                return None
            coefficient *= value
        total += coefficient
    return total


def _applied(factor: list[Any], sizes: Mapping[str, int]) -> int | None:
    function, *operands = factor
    a, b = (evaluate(operand, sizes) for operand in operands)
    return None if a is None or b is None else _FUNCTIONS[function](a, b)
