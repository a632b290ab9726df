"""Lookups by columns of one matrix of ids, each in its own table, become one lookup."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from graphopt.ir.graph import Graph, Node, Value
from graphopt.passes._concats import axis_of, concat
from graphopt.passes._lanes import Lane, Together, lane_of
from graphopt.passes._shapes import reshaped
from graphopt.passes._stacked import stacking_refusal
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite import Rewriter
from graphopt.rewrite.rewriter import erase_dead

RULE = "columns_to_lookup"


@dataclass(frozen=True)
class FuseLookups(Pass):
    """Looks up all columns of a matrix of ids in their tables at once.

    What exporters write per field (take the column, cast it, look it up) and then concatenate
    becomes one lookup in the tables stacked in one, by row numbers that `graphopt::TableRows` makes
    of the ids. So does arithmetic that is the same for each column but for its constants, as in
    hashed ids, and sums and products of rows, as in quotient-remainder embeddings (Shi et al.,
    "Compositional embeddings using complementary partitions", 2020). Needs `min_fields` such
    columns, which follow one another in the matrix as their rows do in the concatenation, and rows
    of one width. An id outside its own table stays an error. In ONNX Runtime this pays from
    `min_fields` on (measured for widths 1 to 64, batches 1 to 2048). Fidelity: exact.

    Options:
        min_fields: the fewest fields to fuse.
        max_bytes: the most that the tables of one lookup may take: stacked, they are in memory.
        max_growth: the bytes that the model may grow by, as some of the tables stay for others.

    Before:
        (float[N,9] x) => (float[N,7,4] y) <float[7,4] t, float[5,4] u, int64[8] sizes = {
         1, 1, 1, 1, 1, 1, 1, 2}> {
            c0, c1, c2, c3, c4, c5, c6, dense = Split<axis=1>(x, sizes)
            i0 = Cast<to=7>(c0) i1 = Cast<to=7>(c1) i2 = Cast<to=7>(c2) i3 = Cast<to=7>(c3)
            i4 = Cast<to=7>(c4) i5 = Cast<to=7>(c5) i6 = Cast<to=7>(c6)
            a = Gather(t, i0) b = Gather(u, i1) c = Gather(t, i2) d = Gather(u, i3)
            e = Gather(t, i4) f = Gather(u, i5) g = Gather(t, i6)
            y = Concat<axis=1>(a, b, c, d, e, f, g)
        }

    After:
        (float[N,9] x) => (float[N,7,4] y) <float[12,4] tu, int64[7] rows = {7, 5, 7, 5, 7, 5, 7},
         int64[7] starts = {0, 7, 0, 7, 0, 7, 0}, int64[1] zero = {0}, int64[1] seven = {7},
         int64[1] axis = {1}> {
            columns = Slice(x, zero, seven, axis)
            ids = Cast<to=7>(columns)
            number = graphopt.TableRows(ids, rows, starts)
            y = Gather(tu, number)
        }
    """

    min_fields: int = 7
    max_bytes: int = 1 << 30
    max_growth: int = 1 << 20

    name = "fuse-lookups"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        before = ctx.stats.hits[RULE]
        for node in [node for node in graph.walk() if node.op == "Concat"]:
            if node.graph is not None and axis_of(node):
                self._fuse(node, ctx)
        return ctx.stats.hits[RULE] > before

    def _fuse(self, node: Node, ctx: PassContext) -> None:
        operands: list[Value] = []
        fused = False
        for run in _runs(node):
            reason = self._refusal(run)
            if reason is None:
                operands.append(_emit(node, [entry for entry in run if isinstance(entry, Lane)]))
                fused = True
                ctx.stats.hits[RULE] += 1
            else:
                operands += [entry.value if isinstance(entry, Lane) else entry for entry in run]
                if reason:
                    ctx.stats.refuse(RULE, node, reason)
        if fused:
            assert node.graph is not None
            joined = concat(Rewriter(node, [node]), operands, node.attr("axis"))
            node.graph.replace_uses(node.output, joined)
            erase_dead(node.graph, [node])

    def _refusal(self, run: list[Lane | Value]) -> str | None:
        """Why not to fuse `run`; empty where there is nothing to explain."""
        lanes = [entry for entry in run if isinstance(entry, Lane)]
        if len(lanes) < len(run) or len(lanes) < 2:
            return ""
        if len(lanes) < self.min_fields:
            return f"{len(lanes)} fields are too few to pay; min_fields is {self.min_fields}"
        if any(len(lane.value.uses) > 1 for lane in lanes):
            return "rows of one field are also read elsewhere"
        lookups = [node for lane in lanes for node in lane.lookups]
        for tables in zip(*(lane.tables for lane in lanes)):
            reason = stacking_refusal(tables, lookups, self.max_bytes, self.max_growth)
            if reason is not None and len(set(tables)) > 1:
                return reason
        return None


def _runs(node: Node) -> list[list[Lane | Value]]:
    """The operands of `node` in order, neighbours that may become one lookup together."""
    entries = [lane_of(v) or v for v in node.inputs if v is not None]

    def key(pair: tuple[int, Lane | Value]) -> tuple[object, ...]:
        place, entry = pair
        if not isinstance(entry, Lane):
            return (place,)
        return (*entry.form, *(column - place for column in entry.columns))

    return [[entry for _, entry in run] for _, run in groupby(enumerate(entries), key)]


def _emit(node: Node, run: list[Lane]) -> Value:
    """The rows of all lanes, in the shape that concatenating them gives."""
    rw = Rewriter(node, [covered for lane in run for covered in lane.nodes])
    found = Together(rw).of(tuple(lane.value for lane in run))
    axis = axis_of(node)
    dims = list(run[0].value.tensor.dims)
    dims[axis] = len(run) * dims[axis]  # type: ignore[index]
    side_by_side = reshaped(rw, found, tuple(dims))
    assert isinstance(side_by_side, Value), "all sizes but the first are known"
    return side_by_side
