"""Equal rows of tables, stored once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Graph
from graphopt.passes._row_maps import RowMap, mappable_tables, words
from graphopt.pipeline.base import Fidelity, Pass, PassContext

_CHUNK = 1 << 14  # rows looked at together


@dataclass(frozen=True)
class DeduplicateRows(Pass):
    """Stores repeated rows of a table only once, and looks ids up in a map first.

    Needs tables that are only looked up, with so many equal rows that the map is worth its bytes.
    Rows that were never trained often are all alike. Rows are equal if their bits are.
    Fidelity: exact.

    Attributes:
        lookups: False for tables of embedding bags only, before bags are merged.

    Before:
        (int64[N] ids) => (int8[N,4] y) <int8[4000,4] table> {
            y = Gather<axis=0>(table, ids)
        }

    After:
        (int64[N] ids) => (int8[N,4] y) <int8[256,4] rows, uint8[4000] numbers> {
            number = Gather<axis=0>(numbers, ids)
            row = Cast<to=7>(number)
            y = Gather<axis=0>(rows, row)
        }
    """

    lookups: bool = True

    name = "deduplicate-rows"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        changed = False
        for table, array in mappable_tables(graph, ctx, self.lookups, "deduplicate"):
            found = _distinct(array)
            if found is None or not found.pays:
                ctx.stats.refuse("deduplicate", table.users[0], "too few of its rows are equal")
                continue
            found.apply(graph, table)
            ctx.stats.hits["deduplicated"] += 1
            changed = True
        return changed


def _distinct(table: np.ndarray) -> RowMap | None:
    """The map to the distinct rows of `table`; None if there are no equal ones."""
    keys = _hashes(table)
    _, first, numbers = np.unique(keys, return_index=True, return_inverse=True)
    if len(first) == len(table):
        return None
    order = np.argsort(first)  # rows stay in the order of their first ids
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    kept, numbers = table[first[order]], place[numbers]
    for start in range(0, len(table), _CHUNK):  # equal hashes are not equal rows yet
        part = slice(start, start + _CHUNK)
        if kept[numbers[part]].tobytes() != table[part].tobytes():
            return None
    return RowMap.of(kept, numbers)


def _hashes(table: np.ndarray) -> np.ndarray:
    """uint64[rows], equal for rows of equal bits."""
    columns = words(table[:1]).shape[1]
    factors = np.random.default_rng(0).integers(0, 2**64, columns, np.uint64, endpoint=False)
    hashes = np.empty(len(table), np.uint64)
    for start in range(0, len(table), _CHUNK):
        part = slice(start, start + _CHUNK)
        hashes[part] = (words(table[part]) * (factors | np.uint64(1))).sum(axis=1)
    return hashes
