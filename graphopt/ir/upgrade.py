"""Nodes of older opsets written in the forms of opset 18.

The rest of graphopt sees one form of each op: axes as inputs, `Split` with sizes, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graphopt.ir.graph import Graph, Value

MIN_OPSET = 18


@dataclass
class OpCall:
    """An op about to become a node.

    Attributes:
        inputs: its operands, None where omitted.
        outputs: names for its results.
        origin: the source nodes it stands for.
    """

    op_type: str
    domain: str
    inputs: list[Value | None]
    attrs: dict[str, Any]
    outputs: list[str]
    origin: tuple[str, ...]


Adapter = Callable[[Graph, OpCall, int], Sequence[Value]]
_ADAPTERS: dict[str, Adapter] = {}


def upgrade(graph: Graph, call: OpCall, version: int) -> Sequence[Value]:
    """Insert `call`, written in opset `version`, in today's form; returns its results."""
    if not call.domain and version < MIN_OPSET and call.op_type in _ADAPTERS:
        return _ADAPTERS[call.op_type](graph, call, version)
    return insert(graph, call)


def insert(graph: Graph, call: OpCall) -> Sequence[Value]:
    """Insert `call` as it is."""
    node = graph.insert(
        call.op_type,
        call.inputs,
        call.attrs,
        domain=call.domain,
        outputs=call.outputs,
        origin=call.origin,
    )
    return node.outputs
