"""Equal rows stored once: which tables, and what lookups read then."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir.graph import Graph, Value
from graphopt.passes.deduplicate_rows import DeduplicateRows
from graphopt.pipeline.base import PassContext
from graphopt.testing import (
    Compiled,
    assert_keeps_outputs,
    assert_unchanged,
    parse,
    run_onnxruntime,
)

LOOKUP = """(int64[N] ids) => (float[N,16] y) <float[2000,16] table> {
    y = Gather<axis=0>(table, ids)
}"""
BAG = """(int64[n] ids, int64[b] starts) => (float[b,16] y) <float[2000,16] table> {
    y = graphopt.EmbeddingBag<mode="sum">(table, ids, starts)
}"""
IDS = np.array([0, 7, 1999, -1, -2000, 300])


def repeated(text: str, distinct: int = 100) -> Graph:
    """`text` with a table of which few rows are distinct: row k is row k % distinct."""
    graph = parse(text)
    table = table_of(graph)
    assert table.const is not None
    table.const = np.tile(table.const[:distinct], (-(-2000 // distinct), 1))[:2000]
    return graph


def table_of(graph: Graph) -> Value:
    return next(v for v in graph.constants() if v.rank == 2)


def test_every_lookup_reads_the_same_bits() -> None:
    graph = repeated(LOOKUP)
    assert_keeps_outputs(DeduplicateRows(), graph)
    assert table_of(graph).shape == (101, 16)  # with a row of zeros
    assert [n.op for n in graph.nodes] == ["Gather", "Cast", "Gather"]


def test_ids_from_the_end_and_compiled_code() -> None:
    graph = repeated(LOOKUP)
    wanted = run_onnxruntime(graph, {"ids": IDS})["y"]
    DeduplicateRows().run(graph, PassContext())
    np.testing.assert_array_equal(run_onnxruntime(graph, {"ids": IDS})["y"], wanted)
    np.testing.assert_array_equal(Compiled(graph)({"ids": IDS})["y"], wanted)


@pytest.mark.parametrize("oob", ["zero", "clamp"])
def test_ids_outside_the_table_read_what_they_did(oob: str) -> None:
    graph, outside = repeated(LOOKUP), np.array([2000, 2**40, -2001, 5])
    wanted = Compiled(graph, oob)({"ids": outside})["y"]
    DeduplicateRows().run(graph, PassContext())
    np.testing.assert_array_equal(Compiled(graph, oob)({"ids": outside})["y"], wanted)


def test_a_row_of_zeros_is_the_one_that_is_there() -> None:
    graph = repeated(LOOKUP)
    table = table_of(graph)
    assert table.const is not None
    table.const[50::100] = 0
    assert_keeps_outputs(DeduplicateRows(), graph)
    assert table_of(graph).shape == (100, 16)


def test_negative_zero_is_another_row() -> None:
    graph = repeated(LOOKUP)
    table = table_of(graph)
    assert table.const is not None
    table.const[50::100], table.const[51::100] = 0.0, -0.0
    DeduplicateRows().run(graph, PassContext())
    found = run_onnxruntime(graph, {"ids": np.array([50, 51])})["y"]
    np.testing.assert_array_equal(np.signbit(found), [[False] * 16, [True] * 16])


def test_embedding_bags() -> None:
    assert_keeps_outputs(DeduplicateRows(), repeated(BAG))
    assert_keeps_outputs(DeduplicateRows(lookups=False), repeated(BAG))
    assert not DeduplicateRows(lookups=False).run(repeated(LOOKUP), PassContext())


@pytest.mark.parametrize(("distinct", "ints"), [(200, "uint8"), (300, "uint16")])
def test_the_map_is_as_narrow_as_can_be(distinct: int, ints: str) -> None:
    graph = repeated(LOOKUP, distinct)
    DeduplicateRows().run(graph, PassContext())
    assert next(v for v in graph.constants() if v.rank == 1).dtype == ints


def refusal(graph: Graph) -> str:
    ctx = PassContext()
    assert not DeduplicateRows().run(graph, ctx)
    return " ".join(why for _, _, why in ctx.stats.refusals)


def test_what_is_left_alone() -> None:
    assert "too few" in refusal(parse(LOOKUP))
    assert "too few" in refusal(repeated(LOOKUP, 1900))
    assert "skips a row" in refusal(repeated(BAG.replace('"sum"', '"sum", padding_idx=0')))
    other = LOOKUP.replace("y = G", "z = Neg(table)  y = G").replace("y)", "y, float[2000,16] z)")
    assert "not only looked up" in refusal(repeated(other))
    small = "(int64[N] ids) => (float[N,2] y) <float[20,2] t> { y = Gather(t, ids) }"
    assert_unchanged(DeduplicateRows(), small, "the table is small")
    columns = "(int64[N] i) => (float[2000,N] y) <float[2000,16] t> { y = Gather<axis=1>(t, i) }"
    assert_unchanged(DeduplicateRows(), columns)
