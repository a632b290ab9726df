"""Candidates run as they would from a file of their own, and what they share is written once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from graphopt.accuracy.workbench import Workbench
from graphopt.ir.graph import Graph
from graphopt.testing import parse, random_inputs, run_onnxruntime

MODEL = """(int64[N] ids) => (float[N,16] y) <float[500,16] table, float[16,16] w> {
    rows = Gather(table, ids)
    y = MatMul(rows, w)
}"""
IN_SUBGRAPH = """(int64[N] ids, bool c) => (float[N,16] y) <float[500,16] table> {
    y = If(c) <then_branch = a () => (p) { p = Gather(table, ids) },
               else_branch = b () => (q) { r = Gather(table, ids) q = Neg(r) }>
}"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return Workbench()


def written(folder: Path) -> int:
    return sum(Path(root, f).stat().st_size for root, _, files in os.walk(folder) for f in files)


def assert_runs(graph: Graph, bench: Workbench) -> None:
    feeds = random_inputs(graph)
    np.testing.assert_array_equal(
        bench.load(graph).run(feeds)["y"], run_onnxruntime(graph, feeds)["y"]
    )


def test_what_candidates_share_is_written_once(bench: Workbench, tmp_path: Path) -> None:
    graph = parse(MODEL)
    assert_runs(graph, bench)
    once = written(tmp_path)
    assert once >= 500 * 16 * 4
    for _ in range(3):
        assert_runs(graph.clone(), bench)
    assert written(tmp_path) == once


def test_what_a_candidate_changes_is_its_own(bench: Workbench, tmp_path: Path) -> None:
    graph = parse(MODEL)
    first = bench.load(graph)
    before = written(tmp_path)
    changed = graph.clone()
    weight = next(v for v in changed.constants() if v.shape == (16, 16))
    assert weight.const is not None
    weight.const = weight.const * np.float32(2)
    assert_runs(changed, bench)
    assert before < written(tmp_path) < before + 2 * 4096
    feeds = random_inputs(graph)
    twice = bench.load(changed).run(feeds)["y"]
    np.testing.assert_allclose(twice, 2 * first.run(feeds)["y"], rtol=1e-6)


def test_an_array_at_the_address_of_one_that_is_gone(bench: Workbench) -> None:
    graph = parse(MODEL)
    table = next(v for v in graph.constants() if v.shape == (500, 16))
    for k in range(8):
        table.const = np.full((500, 16), k, np.float32)
        assert_runs(graph, bench)


def test_constants_of_subgraphs(bench: Workbench) -> None:
    assert_runs(parse(IN_SUBGRAPH), bench)


def test_nothing_is_left_behind(bench: Workbench, tmp_path: Path) -> None:
    graph = parse(MODEL)
    model = bench.load(graph)
    bench.close()
    assert not written(tmp_path)
    assert model.run(random_inputs(graph))["y"].shape == (3, 16)
