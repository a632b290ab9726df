"""Copies of a subgraph's nodes in the graph around it."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.ir.copying import copy_node
from graphopt.ir.graph import Graph, Node, Value
from graphopt.rewrite.rewriter import erase_dead


def inline(
    body: Graph, arguments: Sequence[Value], before: Node, inserted: list[Node]
) -> list[Value]:
    """Copy the nodes of `body` to just before `before`, its inputs replaced by `arguments`.

    `inserted` is extended by the copies.

    Returns:
        what the outputs of `body` became.
    """
    assert before.graph is not None
    values = dict(zip(body.inputs, arguments))
    for node in body.nodes:
        copied = copy_node(node, before.graph, values, before)
        copied.origin = tuple(dict.fromkeys(before.origin + node.origin))
        inserted.append(copied)
    return [values.get(value, value) for value in body.outputs]


def replace(node: Node, results: Sequence[Value | None]) -> None:
    """Replace the outputs of `node` by `results` (None where nobody reads it) and erase it."""
    assert node.graph is not None
    for old, new in zip(node.outputs, results):
        if new is not None:
            node.graph.replace_uses(old, new)
    erase_dead(node.graph, [node])
