"""Sizes that follow from a Reshape: it keeps the number of elements.

An exporter that traced a model with a sequence of 21 may write that number into some reshapes and
leave others symbolic. What fits only one length then *has* that length, and saying so lets the
shapes of the whole model be known.
"""

from __future__ import annotations

from collections.abc import Iterator

from graphopt.ir import dims
from graphopt.ir.dims import Dim, Sym
from graphopt.ir.graph import Graph


def made_up_sizes(graph: Graph, given: set[str]) -> set[str]:
    """Names that inference gave to axes of reshaped values because it could not tell their size."""
    shapes = (node.output.shape or () for node in graph.walk() if node.op == "Reshape")
    return {dim.text for shape in shapes for dim in shape if dims.is_name(dim)} - given


def solved(graph: Graph, given: set[str], equal: dict[str, Dim]) -> dict[str, Dim]:
    """Sizes of `given` that are one number, since all reshapes keep the number of elements.

    Args:
        equal: what made-up sizes are equal to, because an op needs that.
    """
    found: dict[str, Dim] = {}
    for before, after in _equations(graph):
        before, after = (dims.substitute(side, equal.get) for side in (before, after))
        for name in dims.symbols(before) & dims.symbols(after):
            size = Sym.named(name)  # not 0: without samples there is nothing to get wrong
            a, b = dims.exact_div(before, size), dims.exact_div(after, size)
            if a is not None and b is not None:
                before, after = a, b
        found.update(number(before - after, given))
    return found


def _equations(graph: Graph) -> Iterator[tuple[Dim, Dim]]:
    for node in graph.walk():
        if node.op != "Reshape" or node.inputs[0] is None:
            continue
        source, result = node.inputs[0].shape, node.output.shape
        if not source or not result:
            continue
        before, after = dims.product(source), dims.product(result)
        if before != after:
            yield before, after


def number(difference: Dim, given: set[str]) -> dict[str, Dim]:
    """The size that makes `difference` zero, if it depends on one of `given` only, linearly."""
    names = dims.symbols(difference)
    if len(names) != 1 or not names <= given or not isinstance(difference, Sym):
        return {}
    (name,) = names
    constant = dims.substitute(difference, lambda _: 0)
    slope = dims.exact_div(difference - constant, Sym.named(name))
    size = dims.exact_div(-constant, slope) if isinstance(slope, int) else None
    return {name: size} if isinstance(size, int) and size > 0 else {}
