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
from graphopt.ir.types import TensorType


def made_up_sizes(graph: Graph, given: set[str]) -> set[str]:
    """Names that inference gave to axes of reshaped values because it could not tell their size."""
    reshapes = (node for node in graph.walk() if node.op == "Reshape")
    found = {name for node in reshapes for name in map(_name, _dims(node.output.type)) if name}
    return found - given


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
        source, result = _dims(node.inputs[0].type), _dims(node.output.type)
        before, after = dims.product(source), dims.product(result)
        if source and result and before != after:
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


def _dims(type_: object) -> tuple[Dim, ...]:
    return type_.shape or () if isinstance(type_, TensorType) else ()


def _name(dim: Dim) -> str:
    """The name of a dim that is one named size, "" for any other."""
    return dim.text if isinstance(dim, Sym) and dims.symbols(dim) == {dim.text} else ""
