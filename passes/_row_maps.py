"""Tables whose rows are looked up by way of a map from ids to the rows that are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import dtype_to_onnx
from graphopt.pipeline.base import PassContext
from graphopt.rewrite import Rewriter

MIN_BYTES = 4096  # of a table that is worth a map
_WORTH = 0.9  # of the bytes: a map that saves less costs more time than it is worth
_SCALE = 2  # bytes


@dataclass(frozen=True, eq=False)
class RowMap:
    """A smaller table, and which of its rows stands for each row of the old one.

    Row 0 of the smaller one is zero. Where an id outside its table reads zeros, it reads number 0
    in the map, and then this row.

    Attributes:
        rows: [kept + 1, dim], in the old dtype.
        numbers: [old rows], in the narrowest dtype.
    """

    rows: np.ndarray
    numbers: np.ndarray

    @staticmethod
    def of(kept: np.ndarray, numbers: np.ndarray) -> RowMap:
        """The map to distinct rows `kept` [k, dim], which `numbers` [old rows] name."""
        marked = words(kept).any(axis=1)
        rows = np.concatenate([np.zeros_like(kept[:1]), kept[marked]])
        place = np.where(marked, np.cumsum(marked), 0)
        return RowMap(rows, narrowed(place[numbers]))

    @property
    def pays(self) -> bool:
        """True if the map is worth its bytes, even where floats have 4 bits in the end."""
        row = self.rows[0].nbytes
        if self.rows.dtype.kind == "f":
            row = self.rows.shape[1] // 2 + _SCALE
        new = len(self.rows) * row + self.numbers.nbytes
        return new <= _WORTH * len(self.numbers) * row

    def saves(self, table: np.ndarray) -> int:
        """Bytes that the model is smaller by."""
        return table.nbytes - self.rows.nbytes - self.numbers.nbytes

    def apply(self, graph: Graph, table: Value) -> None:
        """Let every lookup of `table`, which is only looked up, read the smaller one."""
        rows = graph.constant(self.rows, f"{table.name}.rows")
        for node in table.users:
            number = numbered(node, self.numbers)
            assert node.graph is not None
            node.graph.set_input(node, 0, rows)
            node.graph.set_input(node, 1, number)


def narrowed(numbers: np.ndarray) -> np.ndarray:
    """Numbers from 0 on in the narrowest dtype that ids are mapped by."""
    largest = int(numbers.max(initial=0))
    narrow = next(t for t in (np.uint8, np.uint16, np.int32) if largest <= np.iinfo(t).max)
    return numbers.astype(narrow)


def numbered(node: Node, numbers: np.ndarray) -> Value:
    """The numbers, int32 or int64, of the ids that a lookup `node` takes; one map for two."""
    rw, ids = Rewriter(node, [node]), node.inputs[1]
    assert ids is not None
    before = ids.producer
    if before is not None and before.op == "Cast" and len(ids.uses) == 1:
        before = before.inputs[0].producer if before.inputs[0] is not None else None
    if before is not None and _is_map(before):
        first = before.const(0)
        assert first is not None
        ids, numbers = before.inputs[1], numbers[first]
    found = rw.op.Gather(rw.const(narrowed(numbers)), ids, axis=0)
    return found if found.dtype == "int32" else rw.op.Cast(found, to=dtype_to_onnx("int64"))


def _is_map(node: Node) -> bool:
    """True for a lookup of numbers that only one lookup uses."""
    numbers = node.const(0)
    if node.op != "Gather" or numbers is None or numbers.ndim != 1:
        return False
    alone = len(node.output.uses) == 1 and not node.output.is_graph_output
    return alone and numbers.dtype.kind in "iu" and int(numbers.min(initial=0)) >= 0


def words(rows: np.ndarray) -> np.ndarray:
    """The bits of rows, as unsigned integers [rows, k]."""
    octets = rows.shape[1] * rows.itemsize
    word = next(t for t in (np.uint32, np.uint16, np.uint8) if octets % np.dtype(t).itemsize == 0)
    return np.ascontiguousarray(rows).view(word)


def _reads_of(batches: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """How often ids, as far as a table has rows for them, read each of its rows."""
    counts = np.zeros(rows, np.int64)
    for ids in batches:
        within = ids[(ids >= -rows) & (ids < rows)] % rows
        counts += np.bincount(within.reshape(-1), minlength=rows)
    return counts


def row_reads(graph: Graph, tables: Sequence[Value], ctx: PassContext) -> dict[Value, np.ndarray]:
    """How often each row of `tables`, which are only looked up, is read; empty without a trace."""
    assert ctx.budget is not None
    ids = [node.operands[1] for table in tables for node in table.users]
    traced = ctx.budget.traced(graph, ids)
    if traced is None:
        return {}
    batches = iter(traced)
    reads = {}
    for table in tables:
        assert table.const is not None
        read = [b for _ in table.users for b in next(batches)]
        reads[table] = _reads_of(read, len(table.const))
    return reads


def mappable_tables(
    graph: Graph, ctx: PassContext, lookups: bool, rule: str
) -> Iterator[tuple[Value, np.ndarray]]:
    """Tables that a map could stand before.

    Args:
        lookups: False for tables of embedding bags only.
        rule: whose refusals are noted.
    """
    for table in graph.constants():
        array = table.const
        if array is None or array.dtype.kind not in "fiu" or array.ndim != 2:
            continue
        users = table.users
        if not any(map(_is_read, users)) or not (lookups or any(map(_is_bag, users))):
            continue
        if array.nbytes < MIN_BYTES:
            ctx.stats.refuse(rule, users[0], "the table is small")
        elif table.is_graph_output or not all(
            _is_read(n) and n.inputs[1] is not table for n in users
        ):
            ctx.stats.refuse(rule, users[0], "the table is not only looked up")
        elif any(_is_bag(node) and node.attr("padding_idx") is not None for node in users):
            ctx.stats.refuse(rule, users[0], "a bag skips a row of it by its number")
        else:
            yield table, array


def _is_read(node: Node) -> bool:
    return _is_bag(node) or (node.op == "Gather" and node.attr("axis") in (0, -2))


def _is_bag(node: Node) -> bool:
    return node.op == "graphopt::EmbeddingBag"
