"""Rows of tables that no logged request reads, replaced by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Graph, Value
from graphopt.passes._row_maps import RowMap, mappable_tables, row_reads, words
from graphopt.pipeline.base import LossyPass, PassContext, Proposal

_CHUNK = 1 << 14  # rows added up together


@dataclass(frozen=True)
class PruneRows(LossyPass):
    """Merges the rows of a table that a log of requests never reads into one, their mean.

    Needs an error budget, a trace, and tables that are only looked up. An id that turns up later
    all the same gets what unknown ids have in common. Rows of zeros stay: they say that nothing is
    known. Fidelity: lossy.

    Attributes:
        lookups: False for tables of embedding bags only, before bags are merged.

    Before:
        (int64[N] ids) => (float[N,8] y) <float[2000,8] table> {
            y = Gather<axis=0>(table, ids)
        }

    After:
        (int64[N] ids) => (float[N,8] y) <float[5,8] rows, uint8[2000] numbers> {
            number = Gather<axis=0>(numbers, ids)
            row = Cast<to=7>(number)
            y = Gather<axis=0>(rows, row)
        }
    """

    lookups: bool = True

    name = "prune-rows"

    def propose(self, graph: Graph, ctx: PassContext) -> Iterable[Proposal]:
        tables = dict(mappable_tables(graph, ctx, self.lookups, "prune"))
        for table, reads in row_reads(graph, list(tables), ctx).items():
            array = tables[table]
            if array.dtype.kind != "f":
                continue
            if not np.isfinite(array).all():
                ctx.stats.refuse("prune", table.users[0], "the table holds NaN or infinity")
                continue
            found = _merged(array, (reads > 0) | ~words(array).any(axis=1))
            if found is None or not found.pays:
                ctx.stats.refuse("prune", table.users[0], "too few of its rows are never read")
                continue
            yield Proposal(table.name, "rows", found.saves(array), 0.0, _change(table, found))


def _merged(table: np.ndarray, keep: np.ndarray) -> RowMap | None:
    """The map to the rows to keep and one more for all others; None if all are to stay."""
    others = np.flatnonzero(~keep)
    if not len(others):
        return None
    total = np.zeros(table.shape[1])
    for start in range(0, len(others), _CHUNK):
        total += table[others[start : start + _CHUNK]].sum(axis=0, dtype=np.float64)
    mean = (total / len(others)).astype(table.dtype)
    kept = np.concatenate([table[keep], mean[None]])
    return RowMap.of(kept, np.where(keep, np.cumsum(keep) - 1, len(kept) - 1))


def _change(table: Value, found: RowMap) -> Callable[[Graph, Mapping[Value, Value]], None]:
    def apply(graph: Graph, values: Mapping[Value, Value]) -> None:
        found.apply(graph, values[table])

    return apply
