"""Common subexpression elimination."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from graphopt.ir import schema
from graphopt.ir.graph import Graph, Node, Value
from graphopt.pipeline.base import Fidelity, Pass, PassContext

_SMALL = 1024  # bytes up to which constants are compared by what they hold


class Cse(Pass):
    """Computes once what is computed twice: same op, attributes and operands.

    Needs ops that are not random and have no subgraphs. The operands of commutative ops may be
    swapped. Small constants are equal if they hold the same; large ones must be the same one (see
    share-initializers). What the graph around a subgraph computes is reused inside of it. Fidelity:
    exact.

    Before:
        (float[N,4] x, float[N,4] z) => (float[N,4] y) {
            a = Mul(x, z)
            b = Mul(z, x)
            y = Add(a, b)
        }

    After:
        (float[N,4] x, float[N,4] z) => (float[N,4] y) {
            a = Mul(x, z)
            y = Add(a, a)
        }
    """

    name = "cse"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        merged = _merge(graph, {})
        if merged:
            ctx.stats.hits["merged"] += merged
        return merged > 0


def _merge(graph: Graph, known: dict[Hashable, Node]) -> int:
    """Merge nodes of `graph` with equal ones before or around them; returns how many."""
    known = dict(known)
    merged = 0
    for node in graph.nodes:
        merged += sum(_merge(subgraph, known) for subgraph in node.subgraphs)
        if node.subgraphs or not schema.is_deterministic(node.op_type, node.domain):
            continue
        first = known.setdefault(_key(node), node)
        if first is node:
            continue
        for old, new in zip(node.outputs, first.outputs):
            graph.replace_uses(old, new)
        first.origin = tuple(dict.fromkeys(first.origin + node.origin))
        graph.erase(node)
        merged += 1
    return merged


def _key(node: Node) -> Hashable:
    """Equal for two nodes only if they compute the same."""
    operands = [_operand_key(value) for value in node.inputs]
    if not node.domain and node.op_type in schema.COMMUTATIVE:
        operands.sort(key=hash)
    attrs = tuple(
        (name, _attr_key(attr))
        for name, attr in sorted(node.attrs.items())
        if isinstance(attr, np.ndarray) or attr != _default(node, name)
    )
    return node.domain, node.op_type, len(node.outputs), tuple(operands), attrs


def _default(node: Node, name: str) -> Any:
    assert node.graph is not None
    version = node.graph.opset(node.domain)
    return schema.attr_default(node.op_type, node.domain, version, name)


def _operand_key(value: Value | None) -> Hashable:
    if value is None:
        return None
    if value.const is not None and value.const.nbytes <= _SMALL and value.dtype != "string":
        return "const", *_attr_key(value.const)
    return "value", id(value)


def _attr_key(attr: Any) -> tuple[Hashable, ...]:
    if isinstance(attr, np.ndarray):
        return str(attr.dtype), attr.shape, attr.tobytes() if attr.dtype != object else repr(attr)
    if isinstance(attr, (list, tuple)):
        return ("list", *attr)
    return type(attr).__name__, attr if isinstance(attr, Hashable) else repr(attr)
