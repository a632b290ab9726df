"""Rows that no request of a trace reads: what they become, and when they stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt.accuracy.budget import Spending
from graphopt.accuracy.datasets import Dataset, in_batches
from graphopt.accuracy.judge import Judge
from graphopt.accuracy.metrics import find
from graphopt.accuracy.traces import Trace
from graphopt.accuracy.workbench import Workbench
from graphopt.errors import TraceError
from graphopt.ir.graph import Graph, Value
from graphopt.passes.prune_rows import PruneRows
from graphopt.pipeline.base import PassContext
from graphopt.testing import Compiled, parse, run_onnxruntime

MODEL = """(int64[N] ids, float[N,16] x) => (float[N,16] y) <float[2000,16] table> {
    one = Constant<value_int = 1>()
    next = Add(ids, one)
    e = Gather<axis=0>(table, next)
    y = Add(e, x)
}"""
SEEN = np.arange(0, 400, 2)


def spending(graph: Graph, source: str | Path | Dataset | None) -> Spending:
    data = in_batches({"ids": SEEN, "x": np.zeros((len(SEEN), 16), np.float32)})
    judge = Judge(Workbench().load(graph), data, find("max-error"))
    return Spending(judge, 1e-6, trace=None if source is None else Trace(source, {}))


def table_of(graph: Graph) -> Value:
    return next(v for v in graph.constants() if v.rank == 2)


def pruned(graph: Graph, source: str | Path | Dataset) -> PassContext:
    ctx = PassContext(budget=spending(graph, source))
    PruneRows().run(graph, ctx)
    return ctx


def outputs(graph: Graph, ids: np.ndarray) -> np.ndarray:
    feeds = {"ids": ids, "x": np.zeros((len(ids), 16), np.float32)}
    found = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_array_equal(Compiled(graph)(feeds)["y"], found)
    return found


def test_ids_are_followed_to_the_table(tmp_path: Path) -> None:
    """A trace holds requests; it needs neither labels nor inputs that no id comes from."""
    np.savez(tmp_path / "log.npz", ids=SEEN)
    graph = parse(MODEL)
    table = table_of(graph).const
    assert table is not None
    pruned(graph, tmp_path / "log.npz")
    assert table_of(graph).shape == (len(SEEN) + 2, 16)  # with one of zeros, one for all others
    np.testing.assert_array_equal(outputs(graph, SEEN), table[SEEN + 1])
    others = np.setdiff1d(np.arange(2000), SEEN + 1)
    mean = table[others].mean(axis=0, dtype=np.float64)
    found = outputs(graph, np.array([1, 3, 1500]))
    np.testing.assert_allclose(found, np.broadcast_to(mean, (3, 16)), rtol=1e-5)


def test_rows_of_zeros_stay_zero() -> None:
    graph = parse(MODEL)
    table = table_of(graph)
    assert table.const is not None
    table.const = np.where(np.arange(2000)[:, None] // 10 == 100, np.float32(0), table.const)
    pruned(graph, in_batches({"ids": SEEN}))
    assert not outputs(graph, np.arange(999, 1009)).any()
    assert outputs(graph, np.array([500])).any()


def test_without_a_trace_no_row_goes() -> None:
    graph = parse(MODEL)
    ctx = PassContext(budget=spending(graph, None))
    assert not PruneRows().run(graph, ctx)


def test_held_out_rows_that_read_a_row_that_would_go_keep_it() -> None:
    """The budget is measured: here the data read what the trace does not."""
    graph = parse(MODEL)
    ctx = pruned(graph, in_batches({"ids": SEEN[:10]}))
    assert not ctx.stats.hits
    assert table_of(graph).shape == (2000, 16)


@pytest.mark.parametrize(
    ("rows", "says"),
    [(np.arange(1999), "too few of its rows"), (np.arange(1800), "too few of its rows")],
)
def test_tables_that_are_read_almost_everywhere(rows: np.ndarray, says: str) -> None:
    graph = parse(MODEL)
    ctx = pruned(graph, in_batches({"ids": rows}))
    assert any(says in why for _, _, why in ctx.stats.refusals)


def test_a_trace_without_the_ids(tmp_path: Path) -> None:
    np.savez(tmp_path / "log.npz", other=SEEN)
    with pytest.raises(TraceError, match="nothing for input 'ids'"):
        pruned(parse(MODEL), tmp_path / "log.npz")


def test_requests_that_a_table_has_no_rows_for() -> None:
    graph = parse(MODEL)
    pruned(graph, in_batches({"ids": np.append(SEEN, [5000, -5000])}))
    assert table_of(graph).shape == (len(SEEN) + 2, 16)


def test_requests_of_another_shape() -> None:
    with pytest.raises(TraceError, match="does not fit the model"):
        pruned(parse(MODEL), in_batches({"ids": SEEN[:, None]}))


def test_with_everything_else() -> None:
    """Rows go, and those that stay have few bits."""
    graph = parse(MODEL)
    data = in_batches({"ids": SEEN, "x": np.zeros((len(SEEN), 16), np.float32)})
    found = graphopt.optimize(graph, budget=graphopt.Budget(data, 0.01, trace=data))
    assert sum(v.const.nbytes for v in found.constants() if v.const is not None) < 2000 * 16 / 2
    assert "graphopt::QuantizedLookup" in {n.op for n in found.nodes}
    assert np.abs(outputs(found, SEEN) - outputs(graph, SEEN)).mean() <= 0.01
