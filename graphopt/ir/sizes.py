"""Which symbolic sizes of the inputs must be equal.

Exporters name the batch of each input apart (`b`, `s9`, `unk__302`). Where an op needs two such sizes
to agree, they are one size; without this no two batches could be proved equal.
"""

from __future__ import annotations

from collections.abc import Iterator

from graphopt.ir import dims
from graphopt.ir.dims import Dim, Sym
from graphopt.ir.graph import Graph, Node
from graphopt.ir.types import TensorType, Type

_ALIGNED = frozenset(
    ["Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Sum", "Mean", "Where", "And", "Or", "Xor"]
    + ["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "MatMul", "PRelu"]
)


def own_sizes(type_: Type, name: str, declared: dict[str, str]) -> Type:
    """The type of input `name` with sizes that no other input has, until `unify_sizes` says so.

    Exporters give one name to sizes that differ at run time (the number of bags and the number of
    ids in them, say), and runtimes do not mind. `declared` says which input a name was first seen
    at, and is extended.
    """

    def own(size: str) -> Dim | None:
        return None if declared.setdefault(size, name) == name else Sym.named(f"{size}@{name}")

    if not isinstance(type_, TensorType) or type_.shape is None:
        return type_
    return TensorType(type_.dtype, tuple(dims.substitute(dim, own) for dim in type_.shape))


def unify_sizes(graph: Graph) -> dict[str, str]:
    """Give sizes of inputs that must agree one name, throughout the graph.

    Returns:
        which size each renamed size became.
    """
    order = [name for v in graph.inputs for d in _dims(v.type) for name in sorted(dims.symbols(d))]
    rank = {name: k for k, name in reversed(list(enumerate(order)))}
    renamed: dict[str, str] = {}
    while pairs := [p for node in graph.walk() for p in _required_equal(node, rank)]:
        changes: dict[str, str] = {}
        for a, b in pairs:
            a, b = _find(a, changes), _find(b, changes)
            if a != b:
                keep, drop = sorted((a, b), key=rank.__getitem__)
                changes[drop] = keep
        if not changes:
            break
        final = {name: _find(name, changes) for name in changes}
        renamed = {old: final.get(new, new) for old, new in renamed.items()} | final
        _rename(graph, final)
    return renamed


def _dims(type_: object) -> tuple[Dim, ...]:
    return type_.shape or () if isinstance(type_, TensorType) else ()


def _find(name: str, parents: dict[str, str]) -> str:
    while name in parents:
        name = parents[name]
    return name


def _required_equal(node: Node, rank: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Pairs of input sizes that this node needs to be equal (or one of them 1)."""
    if node.domain:
        return
    shapes = [_dims(v.type) for v in node.inputs if v is not None]
    if node.op_type == "Concat" and shapes:
        count = len(shapes[0])
        axis = node.attr("axis") % count if count else 0
        columns = [[s[k] for s in shapes if len(s) == count] for k in range(count) if k != axis]
    elif node.op_type in _ALIGNED:
        skip = 2 if node.op_type == "MatMul" else 0
        depth = max((len(s) for s in shapes), default=0)
        columns = [[s[-k] for s in shapes if len(s) >= k] for k in range(1 + skip, depth + 1)]
    else:
        return
    for column in columns:
        names = [name for dim in column if (name := _plain_name(dim)) in rank]
        yield from ((names[0], other) for other in names[1:] if other != names[0])


def _plain_name(dim: Dim) -> str:
    """The name of a dim that is one named size and nothing else, "" otherwise."""
    return dim.text if isinstance(dim, Sym) and dims.symbols(dim) == {dim.text} else ""


def _rename(graph: Graph, names: dict[str, str]) -> None:
    """Rename sizes in every type and content of the graph."""

    def value_of(name: str) -> Dim | None:
        return Sym.named(names[name]) if name in names else None

    def renamed(type_: object) -> object:
        if not isinstance(type_, TensorType) or type_.shape is None:
            return type_
        shape = tuple(dims.substitute(dim, value_of) for dim in type_.shape)
        return TensorType(type_.dtype, shape)

    graphs = [graph, *(s for node in graph.walk() for s in node.subgraphs)]
    for value in (v for g in graphs for v in g.inputs):
        value.type = renamed(value.type)  # type: ignore[assignment]
    for node in graph.walk():
        for value in node.outputs:
            value.type = renamed(value.type)  # type: ignore[assignment]
    graph._propagate(graph.walk())
