"""Which tables a node looks rows up in, and which features of the model's inputs name the rows.

A feature is an input of the model, or a column of one where ids are taken out of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from graphopt.analysis.cost import dtype_bits, is_parameter
from graphopt.analysis.ids import SAME_ELEMENTS, Origin, origins, region_text
from graphopt.ir.dims import Dim, product
from graphopt.ir.graph import Graph, Node, Value


@dataclass(frozen=True)
class Lookup:
    """Rows that a node takes out of one table.

    Attributes:
        name: of the table; of one that is stacked on others, with its rows there.
        rows, dim, bits: its size, and the bits that an element takes in it.
        ids: the value that names the rows.
        column: of `ids`, where each column has a table of its own; else None.
        moved: bytes read, ids included, and written.
    """

    name: str
    rows: int
    dim: int
    bits: int
    ids: Value
    column: int | None
    moved: Dim


LookupRule = Callable[[Node], Iterable[Lookup]]
_RULES: dict[tuple[str, str], LookupRule] = {}


def lookup_rule(*ops: str, domain: str = "") -> Callable[[LookupRule], LookupRule]:
    """Register how to tell what nodes of some ops look up."""

    def register(rule: LookupRule) -> LookupRule:
        for op in ops:
            assert (domain, op) not in _RULES, f"two lookup rules for {domain}::{op}"
            _RULES[(domain, op)] = rule
        return rule

    return register


def lookups_of(node: Node) -> list[Lookup]:
    """What `node` looks up, table by table; nothing if it is no lookup."""
    rule = _RULES.get((node.domain, node.op_type))
    return [] if rule is None else list(rule(node))


def lookup_in(table: Value, ids: Value, bits: int, pooled: Dim | None = None) -> Lookup:
    """The lookup of rows of a constant table of `bits` an element.

    Args:
        pooled: how many rows are written, where it is not one for each id.
    """
    (rows, stored), count = table.tensor.dims, product(ids.tensor.dims)
    assert isinstance(rows, int) and isinstance(stored, int)
    dim = stored * 2 if bits == 4 else stored
    moved = bytes_moved(ids, count, dim, bits, count if pooled is None else pooled)
    return Lookup(table.name, rows, dim, bits, ids, None, moved)


def lookups_in_pieces(
    table: Value, ids: Value, sizes: Iterable[int], starts: Iterable[int]
) -> Iterator[Lookup]:
    """A lookup for each column of `ids`, the tables being pieces of one."""
    count, bits = ids.tensor.dims[0], dtype_bits(table.dtype)
    for column, (rows, start) in enumerate(zip(sizes, starts)):
        yield _piece(
            table, rows, start, ids, column, bytes_moved(ids, count, _width(table), bits, count)
        )


def _piece(
    table: Value, rows: int, start: int, ids: Value, column: int | None, moved: Dim
) -> Lookup:
    name = f"{table.name}[{start}:{start + rows}]"
    return Lookup(name, rows, _width(table), dtype_bits(table.dtype), ids, column, moved)


def _width(table: Value) -> int:
    width = table.tensor.dims[1]
    assert isinstance(width, int)
    return width


def bytes_moved(ids: Value, count: Dim, dim: int, bits: int, written: Dim) -> Dim:
    """Bytes of `count` ids and rows, and of `written` rows of float32; scales are left out."""
    each = dtype_bits(ids.dtype) // 8 + -(-dim * bits // 8)
    return count * each + written * (4 * dim)


# ------------------------------------------------------------------------ the ops


@lookup_rule("Gather")
def _gather(node: Node) -> Iterable[Lookup]:
    table, ids = node.inputs[:2]
    if table is None or ids is None or not is_parameter(table) or ids.const is not None:
        return []
    if table.rank != 2 or node.attr("axis", 0) not in (0, -2):
        return []
    rows = ids.producer
    if rows is not None and rows.op == "graphopt::TableRows" and rows.inputs[0] is not None:
        sizes, starts = rows.const(1), rows.const(2)
        if sizes is not None and starts is not None:
            return lookups_in_pieces(table, rows.inputs[0], sizes.tolist(), starts.tolist())
    return [lookup_in(table, ids, dtype_bits(table.dtype))]


@lookup_rule("EmbeddingBag", domain="graphopt")
def _embedding_bag(node: Node) -> Iterable[Lookup]:
    table, ids = node.inputs[:2]
    if table is None or ids is None or table.const is None:
        return []
    return [lookup_in(table, ids, dtype_bits(table.dtype), node.output.tensor.dims[0])]


@lookup_rule("QuantizedLookup", "QuantizedEmbeddingBag", domain="graphopt")
def _quantized(node: Node) -> Iterable[Lookup]:
    codes, _, ids = node.inputs[:3]
    if codes is None or ids is None or codes.const is None:
        return []
    pooled = None if node.op_type == "QuantizedLookup" else node.output.tensor.dims[0]
    return [lookup_in(codes, ids, node.attr("bits", 8), pooled)]


@lookup_rule("ProductLookup", "ProductEmbeddingBag", domain="graphopt")
def _product(node: Node) -> Iterable[Lookup]:
    """A byte for each part of a row; the codebooks, which stay in cache, are not counted."""
    codes, _, ids = node.inputs[:3]
    if codes is None or ids is None or codes.const is None:
        return []
    rows, parts = codes.const.shape
    dim, count = node.output.tensor.dims[-1], product(ids.tensor.dims)
    assert isinstance(dim, int)
    bits = -(-8 * parts // dim)
    pooled = count if node.op_type == "ProductLookup" else node.output.tensor.dims[0]
    return [
        Lookup(codes.name, rows, dim, bits, ids, None, bytes_moved(ids, count, dim, bits, pooled))
    ]


@lookup_rule("EmbeddingBags", domain="graphopt")
def _embedding_bags(node: Node) -> Iterator[Lookup]:
    table, sizes, starts = node.inputs[0], node.const(1), node.const(2)
    if table is None or sizes is None or starts is None:
        return
    bags, bits = node.output.tensor.dims[0], dtype_bits(table.dtype)
    for ids, rows, start in zip(node.inputs[4:], sizes.tolist(), starts.tolist()):
        assert ids is not None
        moved = bytes_moved(ids, product(ids.tensor.dims), _width(table), bits, bags)
        yield _piece(table, rows, start, ids, None, moved)


# ----------------------------------------------------------------------- features


class Features:
    """The features that each value of a graph without subgraphs depends on."""

    def __init__(self, graph: Graph) -> None:
        self._origins = origins(graph)
        self._found: dict[Value, frozenset[str]] = {}
        for value in graph.inputs:
            self._found[value] = frozenset([value.name])
        for node in graph.nodes:
            self._add(node)

    def of(self, values: Iterable[Value | None]) -> frozenset[str]:
        """What any of `values` depends on."""
        known = (self._found.get(value) for value in values if value is not None)
        return frozenset().union(*(found for found in known if found))

    def naming(self, found: Lookup) -> frozenset[str]:
        """The features that the ids of a lookup come from."""
        if found.column is None:
            return self.of([found.ids])
        return frozenset([self._column(found.ids, found.column)])

    def _add(self, node: Node) -> None:
        above = self.of(node.inputs)
        if node.op == "graphopt::TableRows" and node.inputs[0] is not None:
            ids = node.inputs[0]
            above = frozenset(self._column(ids, k) for k in range(_width(ids)))
        moves = node.op in SAME_ELEMENTS
        for value in node.outputs:
            origin = self._origins.get(value) if moves else None
            self._found[value] = above if origin is None else frozenset([_text(origin)])

    def _column(self, ids: Value, column: int) -> str:
        """The feature of one column of a matrix of ids."""
        origin = self._origins.get(ids)
        if origin is not None and origin.axes is not None:
            return _text(origin.cut(origin.axes[1], column, column + 1))
        (name, *others) = sorted(self.of([ids])) or [ids.name]
        return f"{ids.name if others else name}[:, {column}]"


def _text(origin: Origin) -> str:
    return region_text(origin.source.name, origin.source.rank or 0, origin.region)
