"""Copies of nodes and of whole graphs, with what their values become in the copy."""

from __future__ import annotations

from graphopt.ir.graph import Attr, Graph, Node, Value


def copy_into(
    source: Graph, target: Graph, values: dict[Value, Value], *, same_types: bool = False
) -> None:
    """Append copies of `source`'s inputs, nodes and outputs to the empty graph `target`.

    `values` maps source values to target values and is extended; a value that is not in it and not
    defined in `source` belongs to an enclosing graph and is used as it is. `same_types` says that
    `values` maps each value to one of the same type, so that nothing need be inferred.
    """
    for value in source.inputs:
        copied = Value(value.name, value.type)
        copied.content = value.content
        target.inputs.append(copied)
        values[value] = copied
    for node in source.nodes:
        copy_node(node, target, values, same_types=same_types)
    target.set_outputs([_mapped(v, target, values) for v in source.outputs], source.output_names)


def copy_node(
    node: Node,
    target: Graph,
    values: dict[Value, Value],
    before: Node | None = None,
    *,
    same_types: bool = False,
) -> Node:
    """Insert a copy of `node` into `target`; arguments as in `copy_into`."""
    inputs = [None if v is None else _mapped(v, target, values) for v in node.inputs]
    attrs = {
        name: _copy_subgraph(attr, target, values, same_types) if isinstance(attr, Graph) else attr
        for name, attr in node.attrs.items()
    }
    if same_types:
        copied = _twin(node, target, inputs, attrs, before)
    else:
        names = [value.name for value in node.outputs]
        copied = target.insert(
            node.op_type,
            inputs,
            attrs,
            domain=node.domain,
            outputs=names,
            before=before,
            origin=node.origin,
        )
    values.update(zip(node.outputs, copied.outputs))
    return copied


def _twin(
    node: Node,
    target: Graph,
    inputs: list[Value | None],
    attrs: dict[str, Attr],
    before: Node | None,
) -> Node:
    """A copy of `node` whose outputs have the types and contents of the original's."""
    twin = Node(node.op_type, node.domain, attrs, node.origin)
    for subgraph in twin.subgraphs:
        subgraph.owner = twin
    twin.graph, twin.inputs = target, tuple(inputs)
    twin.outputs = tuple(Value(value.name, value.type, twin) for value in node.outputs)
    for value, original in zip(twin.outputs, node.outputs):
        value.content = original.content
    target._attach(twin, before)
    return twin


def _mapped(value: Value, target: Graph, values: dict[Value, Value]) -> Value:
    found = values.get(value)
    if found is None and value.const is not None:
        found = values[value] = target.constant(value.const, value.name)
    return value if found is None else found


def _copy_subgraph(
    source: Graph, parent: Graph, values: dict[Value, Value], same_types: bool
) -> Graph:
    target = Graph(source.name, parent=parent)
    target.metadata = dict(source.metadata)
    copy_into(source, target, values, same_types=same_types)
    return target
