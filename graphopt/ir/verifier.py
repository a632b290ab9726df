"""What must be true of every graph, checked after every pass."""

from __future__ import annotations

from graphopt.errors import GraphoptError
from graphopt.ir import schema
from graphopt.ir.graph import Graph, Node, Use, Value
from graphopt.ir.infer import has_type_rule
from graphopt.ir.types import TensorType


class BrokenGraphError(GraphoptError):
    """A graph breaks an invariant: a bug in whatever changed it last."""

    exit_code = 70


def verify(graph: Graph) -> None:
    """Check order, uses, ownership, names and types.

    Raises:
        BrokenGraphError: names the first thing found wrong.
    """
    uses: dict[Value, set[Use]] = {}
    _check_graph(graph, set(), uses)
    for value, found in uses.items():
        if found != set(value.uses):
            raise BrokenGraphError(
                f"{value}: uses are not exact ({len(value.uses)} recorded, {len(found)} found)"
            )
    names = [value.name for value in graph.inputs]
    for kind, labels in (("inputs", names), ("outputs", graph.output_names)):
        if len(set(labels)) < len(labels):
            raise BrokenGraphError(f"two {kind} have the same name")


def _check_graph(graph: Graph, visible: set[Value], uses: dict[Value, set[Use]]) -> None:
    visible = visible | set(graph.inputs)
    for value in graph.inputs:
        uses.setdefault(value, set())
    for node in graph.nodes:
        if node.graph is not graph:
            raise BrokenGraphError(f"{node} does not know its graph")
        for index, operand in enumerate(node.inputs):
            if operand is not None:
                _check_read(operand, visible, node, index)
                uses.setdefault(operand, set()).add(Use(node, index))
        for subgraph in node.subgraphs:
            if subgraph.owner is not node or subgraph.parent is not graph:
                raise BrokenGraphError(f"a subgraph of {node} does not know its owner")
            _check_graph(subgraph, visible, uses)
        for value in node.outputs:
            if value.producer is not node or value in visible:
                raise BrokenGraphError(f"{value} is not the product of exactly one node")
            visible.add(value)
            uses.setdefault(value, set())
        _check_node(node)
    for index, value in enumerate(graph.outputs):
        _check_read(value, visible, graph, index)
        uses.setdefault(value, set()).add(Use(graph, index))


def _check_read(value: Value, visible: set[Value], reader: Node | Graph, index: int) -> None:
    if value.const is None and value not in visible:
        place = f"{reader} input {index}" if isinstance(reader, Node) else f"output {index}"
        raise BrokenGraphError(f"{place} reads {value}, which is not computed before it")


def _check_node(node: Node) -> None:
    assert node.graph is not None
    found = schema.find(node.op_type, node.domain, node.graph.opset(node.domain))
    if found is None:
        if not has_type_rule(node.op_type, node.domain):
            raise BrokenGraphError(f"{node}: no such op")
        return
    unknown = set(node.attrs) - set(found.attributes)
    if unknown:
        raise BrokenGraphError(f"{node}: unknown attributes {sorted(unknown)}")
    if not found.min_input <= len(node.inputs) <= found.max_input:
        raise BrokenGraphError(f"{node}: {len(node.inputs)} inputs")
    for value in node.outputs:
        if isinstance(value.type, TensorType) and not value.type.dtype:
            raise BrokenGraphError(f"{node}: no dtype was inferred for {value.name}")
