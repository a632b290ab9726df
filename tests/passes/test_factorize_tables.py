"""Tables as a thinner one and a small matrix: which ones, by how much, and for whom."""

from __future__ import annotations

import numpy as np
import pytest

import graphopt
from graphopt.accuracy.datasets import Dataset, in_batches
from graphopt.ir.graph import Graph, Value
from graphopt.passes.factorize_tables import FactorizeTables
from graphopt.pipeline.base import PassContext
from graphopt.testing import Compiled, assert_unchanged, parse, run_onnxruntime

MODEL = """(int64[N] ids) => (float[N,16] y) <float[400,16] table, float[16,16] w> {
    e = Gather<axis=0>(table, ids)
    y = MatMul(e, w)
}"""
BAG = """(int64[n] ids, int64[b] starts, float[n] weights) => (float[b,16] y)
<float[400,16] table> {
    y = graphopt.EmbeddingBag<mode="sum">(table, ids, starts, weights)
}"""


def with_rank(text: str, rank: int) -> Graph:
    """`text` with a table whose rows span `rank` dimensions."""
    graph = parse(text)
    rng = np.random.default_rng(0)
    table_of(graph).const = (rng.normal(size=(400, rank)) @ rng.normal(size=(rank, 16))).astype(
        np.float32
    )
    return graph


def table_of(graph: Graph) -> Value:
    return max(graph.constants(), key=lambda v: 0 if v.const is None else v.const.nbytes)


def rows(count: int = 600) -> Dataset:
    return in_batches({"ids": np.random.default_rng(1).integers(0, 400, count)})


def factorized(graph: Graph, data: Dataset, trace: Dataset | None = None) -> Graph:
    budget = graphopt.Budget(data, 1e-4, trace=trace)
    return graphopt.optimize(graph, passes="factorize-tables", budget=budget)


def test_the_rank_that_is_there() -> None:
    graph = with_rank(MODEL, 5)
    found = factorized(graph, rows())
    assert table_of(found).shape == (400, 8)  # a multiple of 4
    ids = np.array([0, 399, -1, 7])
    wanted = run_onnxruntime(graph, {"ids": ids})["y"]
    for run in (Compiled(found), lambda feeds: run_onnxruntime(found, feeds)):
        np.testing.assert_allclose(run({"ids": ids})["y"], wanted, rtol=1e-4, atol=1e-4)


def test_rows_count_as_often_as_they_are_read() -> None:
    """Only few rows are, and they span less than all."""
    graph = with_rank(MODEL, 16)
    few = in_batches({"ids": np.arange(600) % 4})
    assert table_of(factorized(graph, few, few)).shape == (400, 4)


def test_bags_add_up_thin_rows() -> None:
    graph = with_rank(BAG, 4)
    batches = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        weights = rng.normal(size=50).astype(np.float32)
        ids, starts = rng.integers(0, 400, 50), np.arange(0, 50, 5)
        batches.append({"ids": ids, "starts": starts, "weights": weights})
    found = factorized(graph, Dataset(tuple(batches), whole=True))
    assert [n.op for n in found.nodes] == ["graphopt::EmbeddingBag", "MatMul"]
    wanted = run_onnxruntime(graph, batches[0])["y"]
    np.testing.assert_allclose(Compiled(found)(batches[0])["y"], wanted, rtol=1e-4, atol=1e-4)


def test_tables_of_full_rank_stay() -> None:
    graph = with_rank(MODEL, 16)
    assert not list(FactorizeTables().propose(graph, PassContext(budget=_Untraced())))


class _Untraced:
    def choose(self, *_: object) -> list[object]:
        return []

    def observe(self, *_: object) -> list[object]:
        return []

    def traced(self, *_: object) -> None:
        return None


@pytest.mark.parametrize(
    "text",
    [
        BAG.replace('"sum"', '"sum", empty=1.0'),
        BAG.replace('"sum"', '"max"').replace(", weights)", ")"),
        MODEL.replace("400", "40"),
        MODEL.replace("y)", "y, float[400,16] z)").replace("e = ", "z = Neg(table)  e = "),
        "(int64[N] i) => (float[400,N] y) <float[400,16] t> { y = Gather<axis=1>(t, i) }",
        "(int64[N] i) => (float[N,4] y) <float[4000,4] t> { y = Gather<axis=0>(t, i) }",
    ],
)
def test_left_alone(text: str) -> None:
    assert_unchanged(FactorizeTables(), text)


def test_a_table_that_is_also_an_output() -> None:
    text = MODEL.replace("float[N,16] y)", "float[N,16] y, float[400,16] z)")
    text = text.replace("e = ", "z = Identity(table)  e = ")
    assert_unchanged(FactorizeTables(), text)
