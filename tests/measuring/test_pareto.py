"""Sweeps: points are what `compile` gives, and the best of them are marked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import graphopt
from graphopt.accuracy.datasets import in_batches
from graphopt.accuracy.judge import Verdict
from graphopt.errors import SpecError
from graphopt.measuring.pareto import Point, is_best, sweep
from graphopt.pipeline.report import Report
from graphopt.testing import parse, run_onnxruntime

GRAPH = parse(
    """(int64[N] ids) => (float[N,1] y) <float[300,16] table, float[16,1] w> {
        rows = Gather(table, ids)
        z = MatMul(rows, w)
        y = Sigmoid(z)
    }"""
)


def budget() -> graphopt.Budget:
    rng = np.random.default_rng(0)
    feeds = {"ids": rng.integers(0, 300, 2000)}
    scores = run_onnxruntime(GRAPH, feeds)["y"][:, 0]
    labels = (rng.random(2000) < scores).astype(np.float32)
    return graphopt.Budget(in_batches(feeds, labels), 0.0, "auc")


def test_a_point_is_what_compile_gives_under_its_budget() -> None:
    found = sweep(GRAPH, "onnxruntime", budget=budget(), drops=[0.01, 0.0], seconds=0.0)
    assert [p.max_drop for p in found.points] == [None, 0.0, 0.01]
    full, _, last = found.points
    report = Report()
    limits = replace(budget(), max_drop=0.01)
    graphopt.compile(GRAPH, "onnxruntime", budget=limits, report=report)
    assert last.verdict is not None and report.verification == last.verdict.to_json()
    assert last.verdict.drop <= 0.01
    assert last.bytes < 0.5 * full.bytes
    assert all(p.microseconds > 0 for p in found.points if not p.failure)
    assert (found.metric, found.target, found.rows) == ("auc", "onnxruntime", 512)


def test_a_budget_that_cannot_be_met_is_a_point_without_a_model() -> None:
    strict = replace(budget(), metric="max-error")
    found = sweep(GRAPH, "onnxruntime", budget=strict, drops=[0.0, 1.0], seconds=0.0)
    _, failed, met = found.points
    assert "every change that was tried costs more" in failed.failure
    assert failed.verdict is None and not failed.best
    assert not met.failure and met.best


def test_no_budgets() -> None:
    with pytest.raises(SpecError, match="at least one budget"):
        sweep(GRAPH, budget=budget(), drops=[])


def point(size: int, time: float, drop: float) -> Point:
    verdict = Verdict("auc", 100, 0.8, 0.8 - drop, drop, (drop, drop), False, 0.1)
    return Point(drop, size, time, verdict)


@pytest.mark.parametrize(
    ("others", "best"),
    [
        ([], True),
        ([point(50, 100.0, 0.001)], False),  # smaller
        ([point(100, 50.0, 0.001)], False),  # faster
        ([point(100, 100.0, 0.0)], False),  # more accurate
        ([point(50, 50.0, 0.002)], True),  # smaller and faster, but less accurate
        ([point(100, 99.0, 0.001)], True),  # as fast: a difference within noise
        ([point(50, 101.0, 0.001)], False),
        ([Point(0.1, failure="no")], True),
    ],
)
def test_which_points_are_best(others: list[Point], best: bool) -> None:
    mine = point(100, 100.0, 0.001)
    assert is_best(mine, [mine, *others]) is best
