"""Tables as a thinner table and a small matrix, where their rows span no more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy  # loads its parts on first use

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ops.embedding_bag import EmbeddingBag
from graphopt.passes._inline import replace
from graphopt.passes._ranks import ranks_of
from graphopt.passes._row_maps import row_reads
from graphopt.pipeline.base import LossyPass, PassContext, Proposal
from graphopt.rewrite import Rewriter

# Of the table's norm, as offers to the budget. Four bits lose 0.06 to 0.1 and save more.
_LOSSES = (0.03, 0.01, 0.003, 0.001)
_STEP = 4  # ranks are multiples
_CHUNK = 1 << 16  # rows worked on at once


@dataclass(frozen=True)
class FactorizeTables(LossyPass):
    """Stores a table with fewer columns, and widens the rows looked up by a small matrix.

    Needs an error budget, and a table that is only looked up and whose rows nearly lie in a space
    of fewer dimensions. With a trace each row counts as often as it is read, otherwise all count
    alike. What is left as a table can have fewer bits too. Fidelity: lossy.

    Attributes:
        min_bytes: smaller tables are left alone.
        max_share: what the result may have of the table's elements.

    Before:
        (int64[N] ids) => (float[N,8] y) <float[500,8] table> {
            y = Gather<axis=0>(table, ids)
        }

    After:
        (int64[N] ids) => (float[N,8] y) <float[500,4] thin, float[4,8] wide> {
            row = Gather<axis=0>(thin, ids)
            y = MatMul(row, wide)
        }
    """

    min_bytes: int = 8192
    max_share: float = 0.75

    name = "factorize-tables"
    share: ClassVar[float] = 0.5

    def propose(self, graph: Graph, ctx: PassContext) -> Iterable[Proposal]:
        tables = [t for t in graph.constants() if self._is_candidate(t, ctx)]
        reads = row_reads(graph, tables, ctx)
        for table in tables:
            yield from self._proposals(table, reads.get(table))

    def _is_candidate(self, table: Value, ctx: PassContext) -> bool:
        array = table.const
        if array is None or table.dtype != "float32" or array.ndim != 2:
            return False
        if array.nbytes < self.min_bytes or not all(_is_linear(n, table) for n in table.users):
            return False
        if table.is_graph_output or not np.isfinite(array).all():
            ctx.stats.refuse("factorize", table.users[0], "the table is not all numbers, or given")
            return False
        return array.shape[1] > _STEP

    def _proposals(self, table: Value, reads: np.ndarray | None) -> Iterator[Proposal]:
        array = table.const
        assert array is not None
        values, axes = _principal_axes(array, reads if reads is not None and reads.any() else None)
        ranks = ranks_of(values[::-1], array.shape, _LOSSES, _STEP, self.max_share)
        for rank, loss, saved in ranks:
            change = _Factors(table, array, axes[:, ::-1][:, :rank])
            saves = saved * array.itemsize
            yield Proposal(table.name, f"rank {rank}", saves, loss, change.apply)


def _is_linear(node: Node, table: Value) -> bool:
    """True if `node` takes rows of `table`, or adds up some."""
    if table in node.inputs[1:]:
        return False
    if node.op == "Gather":
        return node.attr("axis") in (0, -2)
    if node.op != "graphopt::EmbeddingBag":
        return False
    bag = EmbeddingBag.of(node)
    return bag.mode != "max" and bag.empty == 0


def _principal_axes(table: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Rising eigenvalues of the rows' second moments, and their vectors as columns."""
    moments = np.zeros((table.shape[1], table.shape[1]))
    for start in range(0, len(table), _CHUNK):
        rows = table[start : start + _CHUNK].astype(np.float64)
        weighted = rows if weights is None else rows * weights[start : start + _CHUNK, None]
        moments += rows.T @ weighted
    values, axes = scipy.linalg.eigh(moments)
    return np.maximum(values, 0.0), axes


@dataclass(eq=False)
class _Factors:
    """A change of every lookup of `table` to one in its coordinates on some axes [dim, rank]."""

    table: Value
    array: np.ndarray
    axes: np.ndarray
    thin: np.ndarray | None = None

    def apply(self, graph: Graph, values: Mapping[Value, Value]) -> None:
        target, axes = values[self.table], self.axes.astype(np.float32)
        if self.thin is None:
            self.thin = self.array @ axes
        thin = graph.constant(self.thin, f"{target.name}.thin")
        wide = graph.constant(np.ascontiguousarray(axes.T), f"{target.name}.wide")
        for node in target.users:
            rw, inputs = Rewriter(node, [node]), [thin, *node.inputs[1:]]
            rows = rw.insert(node.op_type, inputs, node.attrs, domain=node.domain).output
            replace(node, [rw.op.MatMul(rows, wide)])
