"""What a loop that may pool embeddings computes, as a function of a table, ids, offsets and weights.

The region of a loop is the part of the graph between these values and the pooled rows. Exporters put
shape arithmetic, slices of the offsets and even the lookup itself before the loop, so the region first
holds the loop alone and then grows upwards, one node at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import SequenceType, TensorType, is_float

_MOVES = frozenset(
    ["Cast", "CastLike", "Compress", "Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherND"]
    + ["Identity", "NonZero", "Range", "Reshape", "ScatterElements", "ScatterND", "Shape", "Size", "Slice"]
    + ["Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"]
)
_ARITHMETIC = frozenset(
    ["Add", "CumSum", "Div", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Sub", "Sum", "And", "Equal"]
    + ["Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor"]
    + ["ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"]
)
_CONTROL = frozenset(
    ["If", "Loop", "Scan", "ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty"]
    + ["SequenceInsert", "SequenceLength", "SplitToSequence"]
)
_KEEPS_ELEMENTS = frozenset(
    ["Cast", "CastLike", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"]
)
"""Ops whose result consists of elements of their first input."""


@dataclass(frozen=True)
class Roles:
    """Who is who among the values that a region reads."""

    table: Value
    ids: Value
    offsets: Value | None
    weights: Value | None

    @property
    def values(self) -> tuple[Value, ...]:
        return tuple(v for v in (self.table, self.ids, self.offsets, self.weights) if v is not None)


@dataclass(frozen=True)
class Region:
    """Nodes of one graph, in order, that compute `result` from the values of `roles` and constants."""

    result: Value
    nodes: tuple[Node, ...]
    roles: Roles


def pooled_rows(loop: Node) -> Value | None:
    """The float tensor that is all that `loop` is for; None if it computes anything else."""
    used = [value for value in loop.outputs if value.uses]
    if len(used) != 1:
        return None
    value = used[0]
    if isinstance(value.type, SequenceType):
        joins = [n for n in value.users if n.op == "ConcatFromSequence" and n.graph is loop.graph]
        if len(joins) != 1 or len(value.uses) != 1:
            return None
        value = joins[0].output
    return value if isinstance(value.type, TensorType) and is_float(value.dtype) else None


def outside_values(node: Node) -> list[Value]:
    """What `node` reads, subgraphs included, of what is not computed inside it."""
    inner = {v for n in _walk_subgraphs(node) for v in n.outputs}
    inner |= {v for graph in _subgraphs(node) for v in graph.inputs}
    read = [v for n in (node, *_walk_subgraphs(node)) for v in n.inputs if v is not None]
    read += [v for graph in _subgraphs(node) for v in graph.outputs]
    return [v for v in dict.fromkeys(read) if v not in inner]


def _walk_subgraphs(node: Node) -> Iterator[Node]:
    for graph in node.subgraphs:
        yield from graph.walk()


def _subgraphs(node: Node) -> Iterator[Graph]:
    for graph in node.subgraphs:
        yield graph
        for inner in graph.nodes:
            yield from _subgraphs(inner)


def foreign_op(node: Node) -> str | None:
    """The first op in `node` that has no place in an embedding bag, None if all have."""
    for inner in (node, *_walk_subgraphs(node)):
        if inner.domain or inner.op_type not in _MOVES | _ARITHMETIC | _CONTROL:
            return inner.op
    return None


def regions(loop: Node, result: Value, position: Mapping[Node, int]) -> Iterator[Region]:
    """The regions of `loop` that have the inputs of an embedding bag, from near to far.

    `position` orders the nodes of the graph that `loop` is in.
    """
    assert result.producer is not None
    nodes = dict.fromkeys([loop, result.producer])
    read = dict.fromkeys(v for node in nodes for v in outside_values(node))
    while True:
        frontier = [v for v in read if v.const is None and v.producer not in nodes]
        roles = _roles(nodes, read, frontier)
        if roles is not None:
            yield Region(result, tuple(sorted(nodes, key=position.__getitem__)), roles)
        growable = [v.producer for v in frontier if _can_grow(v.producer, position)]
        if not growable:
            return
        # What follows from the other values first; else the last node, on which no other value depends.
        derived = [n for n in growable if all(_follows(v, frontier, position) for v in n.inputs)]
        node = max(derived or growable, key=position.__getitem__)
        nodes[node] = None
        read.update(dict.fromkeys(outside_values(node)))


def _can_grow(node: Node | None, position: Mapping[Node, int]) -> TypeGuard[Node]:
    return node is not None and node in position and not node.subgraphs and not foreign_op(node)


def _follows(
    value: Value | None, frontier: list[Value], position: Mapping[Node, int], depth: int = 8
) -> bool:
    """True if a region that reads `frontier` can compute `value` from it; `depth` nodes are tried."""
    if value is None or value.const is not None or value in frontier:
        return True
    if depth == 0 or not _can_grow(value.producer, position):
        return False
    return all(_follows(v, frontier, position, depth - 1) for v in value.producer.inputs)


def _roles(nodes: Mapping[Node, None], read: Mapping[Value, None], frontier: list[Value]) -> Roles | None:
    lookups = [
        inner
        for node in nodes
        for inner in (node, *_walk_subgraphs(node))
        if inner.op == "Gather" and _is_table(inner.inputs[0]) and inner.inputs[0] in read
    ]
    lookups = [n for n in lookups if n.inputs[0].const is not None or n.inputs[0] in frontier]
    tables = {n.inputs[0] for n in lookups if n.attr("axis") in (0, -2)}
    ids = {_origin(n.inputs[1], frontier) for n in lookups}
    if len(tables) != 1 or len(ids) != 1:
        return None
    (table,), (source,) = tables, ids
    if source is None or source.dtype not in ("int32", "int64") or source.rank not in (1, 2):
        return None
    others = [v for v in frontier if v is not table and v is not source]
    if any(not isinstance(v.type, TensorType) for v in others):
        return None
    weights = [v for v in others if v.dtype == table.dtype and v.rank == source.rank]
    offsets = [v for v in others if v.dtype in ("int32", "int64") and v.rank == 1]
    ragged = 1 if source.rank == 1 else 0
    if len(offsets) != ragged or len(weights) > 1 or len(others) != len(offsets) + len(weights):
        return None
    return Roles(table, source, *(offsets or [None]), *(weights or [None]))


def _is_table(value: Value | None) -> bool:
    return value is not None and isinstance(value.type, TensorType) and value.rank == 2 and is_float(value.dtype)


def _origin(value: Value | None, frontier: list[Value]) -> Value | None:
    """The value of `frontier` whose elements `value` consists of."""
    while value is not None and value not in frontier:
        producer = value.producer
        if producer is None or producer.op not in _KEEPS_ELEMENTS:
            return None
        value = producer.inputs[0]
    return value
