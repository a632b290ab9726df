"""Numbers for the symbolic sizes of a graph's inputs, as they follow from the size of a batch."""

from __future__ import annotations

from graphopt.ir import dims
from graphopt.ir.declared_sizes import read
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType


def batch_sizes(graph: Graph, batch: int) -> dict[str, int]:
    """`batch` for every symbolic size that leads the shape of an input, and for its namesakes.

    A size called `n@x` is the one that input `x` calls `n`; one called `n + 1`, as that of offsets
    with an end, is what it says.
    """
    shapes = _input_shapes(graph)
    names = sorted({name for shape in shapes for dim in shape for name in dims.symbols(dim)})
    called = {name: name.partition("@")[0] for name in names}
    leading = {called[name] for shape in shapes for name in dims.symbols(shape[0])}
    sizes = {}
    for name, label in called.items():
        size = read(label)
        if size is not None and dims.symbols(size) <= leading:
            number = dims.substitute(size, lambda _: batch)
            assert isinstance(number, int)
            sizes[name] = number
        elif label in leading:
            sizes[name] = batch
    return sizes


def sizes_at(graph: Graph, batch: int) -> dict[str, int]:
    """A number for every symbolic size of the inputs: 1 for those that `batch_sizes` lacks."""
    names = {name for shape in _input_shapes(graph) for d in shape for name in dims.symbols(d)}
    return dict.fromkeys(sorted(names), 1) | batch_sizes(graph, batch)


def _input_shapes(graph: Graph) -> list[tuple[Dim, ...]]:
    types = [value.type for value in graph.inputs]
    return [t.shape for t in types if isinstance(t, TensorType) and t.shape]
