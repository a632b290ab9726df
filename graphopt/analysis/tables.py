"""The tables of a model: constants that ids select rows of, and where these ids come from."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from graphopt.analysis.cost import dtype_bits, is_parameter
from graphopt.analysis.ids import id_ranges, region_text
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import TensorType


@dataclass(frozen=True)
class Table:
    """A constant that rows are looked up in.

    Attributes:
        dim: elements of one row.
        indexed_by: the inputs, or columns of inputs (`x[:, 3]`), that hold its ids; empty where
            they are computed.
        lookups: how many nodes read it.
    """

    name: str
    rows: int
    dim: int
    dtype: str
    bytes: int
    indexed_by: tuple[str, ...]
    lookups: int


def tables_of(graph: Graph) -> list[dict[str, Any]]:
    """The tables of a graph as JSON-able entries."""
    return [dataclasses.asdict(table) for table in find_tables(graph)]


def find_tables(graph: Graph) -> list[Table]:
    """The constants that ids select rows of, the largest first."""
    readers: dict[int, list[tuple[Node, Value]]] = defaultdict(list)
    for node in graph.walk():
        table = _table_read_by(node)
        if table is not None:
            readers[id(table.const)].append((node, table))
    sources = _id_sources(graph)
    tables = []
    for found in readers.values():
        value = found[0][1]
        rows = value.tensor.dims[0]
        by = [s for node, _ in found for s in sources.get(_id_node(node).where, ())]
        assert isinstance(rows, int) and value.const is not None
        dim = value.const.size // max(1, rows)
        size = value.const.size * dtype_bits(value.dtype) // 8
        names = tuple(dict.fromkeys(by))
        tables.append(Table(value.name, rows, dim, value.dtype, size, names, len(found)))
    return sorted(tables, key=lambda t: -t.bytes)


_TABLE_FIRST = frozenset(
    f"graphopt::{op}"
    for op in ("EmbeddingBag", "ProductEmbeddingBag", "ProductLookup")
    + ("QuantizedEmbeddingBag", "QuantizedLookup")
)


def _table_read_by(node: Node) -> Value | None:
    """The constant that `node` takes rows of, if it does: a lookup, or a product with a one-hot."""
    data = node.input(0)
    if node.op == "Gather":
        ids = node.input(1)
        leads = data is not None and data.rank and node.attr("axis", 0) in (0, -data.rank)
        computed = ids is not None and ids.const is None
        return data if leads and computed and data is not None and is_parameter(data) else None
    if node.op in _TABLE_FIRST:
        return data if data is not None and is_parameter(data) else None
    if node.op in ("MatMul", "Gemm") and data is not None and data.producer is not None:
        weight = node.input(1)
        one_hot = data.producer.op == "OneHot" and not node.attr("transB", 0)
        return weight if one_hot and weight is not None and is_parameter(weight) else None
    return None


def _id_node(node: Node) -> Node:
    """The node that turns the ids into rows: the one-hot for a product with one."""
    data, ids = node.input(0), node.input(1)
    if node.op == "Gather" and ids is not None and ids.producer is not None:
        return ids.producer if ids.producer.op == "graphopt::TableRows" else node
    if node.op in ("MatMul", "Gemm") and data is not None and data.producer is not None:
        return data.producer
    return node


def _id_sources(graph: Graph) -> dict[tuple[str, ...], list[str]]:
    """For each node that looks ids up, the inputs they come from."""
    ranks = {v.name: v.rank or 0 for v in graph.inputs if isinstance(v.type, TensorType)}
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, ranges in id_ranges(graph).items():
        for ids in ranges:
            if ids.sorted_axis is None:
                found[ids.node].append(region_text(name, ranks[name], ids.region))
    return found
