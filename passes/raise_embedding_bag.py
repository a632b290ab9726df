"""Loops that pool embeddings become `graphopt::EmbeddingBag`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ops.embedding_bag import DOMAIN, OP_TYPE, EmbeddingBag
from graphopt.passes._bag_proof import ask
from graphopt.passes._bag_region import Region, foreign_op, pooled_rows, regions
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite.rewriter import erase_dead

RULE = "loop_to_embedding_bag"


@dataclass(frozen=True)
class RaiseEmbeddingBag(Pass):
    """Raise loops over bags of ids to `graphopt::EmbeddingBag`."""

    name: ClassVar[str] = "raise-embedding-bag"
    fidelity: ClassVar[Fidelity] = Fidelity.REASSOCIATES

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        changed = False
        for loop in [node for node in graph.walk() if node.op in ("Loop", "Scan")]:
            if loop.graph is None:
                continue  # it was inside a loop that has been raised
            found = _recognize(loop)
            if isinstance(found, str):
                ctx.stats.refuse(RULE, loop, found)
            elif found is not None:
                _replace(*found)
                ctx.stats.hits[RULE] += 1
                changed = True
        return changed


def _recognize(loop: Node) -> tuple[Region, EmbeddingBag] | str | None:
    """What `loop` computes; or why it is no embedding bag; None if it does not resemble one."""
    assert loop.graph is not None
    result = pooled_rows(loop)
    if result is None:
        return None
    foreign = foreign_op(loop)
    if foreign is not None:
        return f"{foreign} has no place in an embedding bag"
    position = {node: k for k, node in enumerate(loop.graph.nodes)}
    candidates = list(regions(loop, result, position))
    if not candidates:
        return "it does not take ids and offsets only to the rows of one table"
    reason = ""
    for region in reversed(candidates):
        answer = ask(region)
        if isinstance(answer, EmbeddingBag):
            return region, answer
        reason = answer
    return reason


def _replace(region: Region, bag: EmbeddingBag) -> None:
    producer, roles = region.result.producer, region.roles
    assert producer is not None and producer.graph is not None
    graph = producer.graph
    inputs: list[Value | None] = [roles.table, roles.ids, roles.offsets, roles.weights]
    while inputs[-1] is None:
        inputs.pop()
    origin = [name for node in region.nodes if node.subgraphs for name in node.origin]
    node = graph.insert(OP_TYPE, inputs, bag.attrs, domain=DOMAIN, before=producer, origin=origin)
    graph.replace_uses(region.result, node.output)
    erase_dead(graph, region.nodes)
