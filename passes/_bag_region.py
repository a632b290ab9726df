"""What a loop that may pool embeddings computes, as a function of the inputs of an embedding bag.

The region of a loop is the part of the graph between these inputs and the pooled rows. Exporters
put shape arithmetic, slices of the offsets and even the lookup itself before the loop. So the
region first holds the loop alone and then grows upwards, one node at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import SequenceType, TensorType, is_float
from graphopt.passes._bag_roles import Roles, find_roles

_MOVES = frozenset(
    ["Cast", "CastLike", "Compress", "Concat", "ConstantOfShape", "Expand", "Flatten", "Gather"]
    + ["GatherND", "Identity", "NonZero", "Range", "Reshape", "ScatterElements", "ScatterND"]
    + ["Shape", "Size", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"]
)
_ARITHMETIC = frozenset(
    ["Add", "CumSum", "Div", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Sub", "Sum"]
    + ["And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor"]
    + ["ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"]
)
_CONTROL = frozenset(
    ["If", "Loop", "Scan", "ConcatFromSequence", "SequenceAt", "SequenceConstruct"]
    + ["SequenceEmpty", "SequenceInsert", "SequenceLength", "SplitToSequence"]
)
_VOCABULARY = _MOVES | _ARITHMETIC | _CONTROL
MAX_NODES = 100


@dataclass(frozen=True)
class Region:
    """Nodes of one graph, in order, that compute `result` from `roles` and constants."""

    result: Value
    nodes: tuple[Node, ...]
    roles: Roles


def pooled_rows(loop: Node) -> list[Value]:
    """The float tensor that is all that `loop` is for, and what it is cast to if that is all.

    Empty if the loop computes anything else.
    """
    used = [value for value in loop.outputs if value.uses]
    if len(used) == 1 and isinstance(used[0].type, SequenceType):
        used = _only_user(used[0], "ConcatFromSequence")
    if len(used) != 1 or not isinstance(used[0].type, TensorType) or not is_float(used[0].dtype):
        return []
    return used + _only_user(used[0], "Cast")


def _only_user(value: Value, op: str) -> list[Value]:
    """The output of the node that alone reads `value`, if it is an `op` of the same graph."""
    assert value.producer is not None
    users = [use.user for use in value.uses]
    if len(users) != 1 or not isinstance(users[0], Node) or users[0].op != op:
        return []
    return [users[0].output] if users[0].graph is value.producer.graph else []


def foreign_op(node: Node) -> str | None:
    """The first op in `node` that has no place in an embedding bag, None if all have."""
    for inner in _with_inner(node):
        if inner.domain or inner.op_type not in _VOCABULARY:
            return inner.op
    return None


def outside_values(node: Node) -> list[Value]:
    """What `node` reads, subgraphs included, of what is not computed inside it."""
    nodes, graphs = list(_with_inner(node)), list(_subgraphs(node))
    inner = {v for n in nodes[1:] for v in n.outputs} | {v for g in graphs for v in g.inputs}
    read = [v for n in nodes for v in n.inputs if v is not None]
    read += [v for graph in graphs for v in graph.outputs]
    return [v for v in dict.fromkeys(read) if v not in inner]


def _with_inner(node: Node) -> Iterator[Node]:
    yield node
    for graph in node.subgraphs:
        yield from graph.walk()


def _subgraphs(node: Node) -> Iterator[Graph]:
    for inner in _with_inner(node):
        yield from inner.subgraphs


def regions(loop: Node, result: Value) -> Iterator[Region]:
    """The regions of `loop` that have the inputs of an embedding bag, from near to far."""
    assert loop.graph is not None
    position = {node: k for k, node in enumerate(loop.graph.nodes)}
    nodes, node = [loop], result.producer
    while node is not None and node is not loop:
        nodes.append(node)
        node = node.inputs[0].producer if node.inputs[0] is not None else None
    growth = _Growth(position, tuple(nodes))
    while node is not None and len(growth.nodes) <= MAX_NODES:
        if growth.roles is not None:
            nodes = sorted(growth.nodes, key=position.__getitem__)
            yield Region(result, tuple(nodes), growth.roles)
        node = growth.next_node()
        if node is not None:
            growth = _Growth(position, (*growth.nodes, node))


class _Growth:
    """A set of nodes on its way to become a region.

    Attributes:
        frontier: what the nodes read and do not compute, constants left out.
        roles: the roles of these values, if they are the inputs of a bag.
    """

    def __init__(self, position: Mapping[Node, int], nodes: tuple[Node, ...]) -> None:
        self.position = position
        self.nodes = dict.fromkeys(nodes)
        read = dict.fromkeys(v for node in nodes for v in outside_values(node))
        self.frontier = [v for v in read if v.const is None and v.producer not in self.nodes]
        inner = (n for node in nodes for n in _with_inner(node))
        self.roles = find_roles(inner, read, self.frontier)

    def next_node(self) -> Node | None:
        """The node to grow by, None for the end; roles are kept as long as possible."""
        nodes = [v.producer for v in self.frontier if self._may_grow(v.producer)]
        derived = [n for n in nodes if all(self._follows(v) for v in n.inputs)]
        kept: list[Node] = []
        if self.roles is not None and not derived:
            kept = [n for n in nodes if _Growth(self.position, (*self.nodes, n)).roles is not None]
        # Nothing that is read can depend on the last node but what the region computes.
        return max(derived or kept or nodes, key=self.position.__getitem__, default=None)

    def _may_grow(self, node: Node | None) -> TypeGuard[Node]:
        if node is None or node not in self.position or node.subgraphs:
            return False
        return foreign_op(node) is None

    def _follows(self, value: Value | None, depth: int = 8) -> bool:
        """True if `value` can be computed from the frontier, in `depth` steps at most."""
        if value is None or value.const is not None or value in self.frontier:
            return True
        if depth == 0 or not self._may_grow(value.producer):
            return False
        return all(self._follows(v, depth - 1) for v in value.producer.inputs)
