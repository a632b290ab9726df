"""Loops that pool embeddings become `graphopt::EmbeddingBag`."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ops.embedding_bag import DOMAIN, OP_TYPE, EmbeddingBag
from graphopt.passes._bag_proof import ask
from graphopt.passes._bag_region import Region, foreign_op, pooled_rows, regions
from graphopt.passes._bag_roles import Roles, stride_of
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite import Rewriter
from graphopt.rewrite.rewriter import erase_dead

RULE = "loop_to_embedding_bag"


@dataclass(frozen=True)
class RaiseEmbeddingBag(Pass):
    """Replaces loops over bags of ids by `graphopt::EmbeddingBag`.

    Needs a loop that gives the answers of one kind of bag on every edge case tried. Exporters write
    an embedding bag as a loop that slices, looks up and reduces the ids of one bag in each
    iteration; how, depends on the exporter, its version, mode, weights and padding. So the form of
    the loop only tells what its table, ids, offsets and weights may be. What it computes is found
    out by running it on edge cases: exactly one kind of bag must give the same results on all of
    them. Offsets are taken to be those of bags: they do not decrease, and where they hold the end
    of the last bag, that is the number of ids. Bags of a fixed size lose their offsets, bags of one
    id become a Gather. Fidelity: reassociates (additions).

    Before:
        (float[9,4] table, int64[n] ids, int64[b] offsets) => (float[b,4] pooled)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[1] far = {2147483647}, bool yes = {1}>
        {
            n = Shape(ids)
            starts_and_n = Concat<axis=0>(offsets, n)
            ends = Slice(starts_and_n, one, far)
            b = Size(ends)
            pooled = Loop(b, yes) <
                body = bag (int64 i, bool go) => (bool goes_on, float[4] sum) {
                    start = Gather(starts_and_n, i)
                    end = Gather(ends, i)
                    start_1 = Unsqueeze(start, zero)
                    end_1 = Unsqueeze(end, zero)
                    own = Slice(ids, start_1, end_1)
                    rows = Gather(table, own)
                    sum = ReduceSum<keepdims=0>(rows, zero)
                    goes_on = Identity(go)
                }
            >
        }

    After:
        (float[9,4] table, int64[n] ids, int64[b] offsets) => (float[b,4] pooled) {
            pooled = graphopt.EmbeddingBag<mode="sum", empty=0.0>(table, ids, offsets)
        }
    """

    name = "raise-embedding-bag"
    fidelity = Fidelity.REASSOCIATES

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
    results = pooled_rows(loop)
    if not results:
        return None
    foreign = foreign_op(loop)
    if foreign is not None:
        return f"{foreign} has no place in an embedding bag"
    reasons = []
    # The largest region leaves the least of the exporter's code around the bag.
    for region in [r for result in reversed(results) for r in reversed([*regions(loop, result)])]:
        answer = ask(region)
        if isinstance(answer, EmbeddingBag):
            return region, answer
        reasons.append(answer)
    return reasons[0] if reasons else "it is no function of one table, ids and offsets"


def _replace(region: Region, bag: EmbeddingBag) -> None:
    producer = region.result.producer
    assert producer is not None and producer.graph is not None
    rewriter = Rewriter(producer, [node for node in region.nodes if node.subgraphs])
    pooled = _emit(rewriter, region.roles, bag)
    producer.graph.replace_uses(region.result, pooled)
    erase_dead(producer.graph, region.nodes)


def _emit(rw: Rewriter, roles: Roles, bag: EmbeddingBag) -> Value:
    ids, offsets, weights = roles.ids, roles.offsets, roles.weights
    size = None if bag.include_last_offset else stride_of(ids, offsets)
    if size is not None:
        ids, offsets = rw.op.Reshape(ids, rw.ints(-1, size)), None
        weights = None if weights is None else rw.op.Reshape(weights, rw.ints(-1, size))
    if ids.tensor.dims[1:] == (1,) and weights is None and bag.padding_idx is None:
        return rw.op.Gather(roles.table, rw.op.Squeeze(ids, rw.ints(1)), axis=0)
    inputs: list[Value | None] = [roles.table, ids, offsets, weights]
    while inputs[-1] is None:
        inputs.pop()
    return rw.insert(OP_TYPE, inputs, bag.attrs, domain=DOMAIN).output
