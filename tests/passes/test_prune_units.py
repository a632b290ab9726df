"""Hidden units that go: which, and what makes up for them."""

from __future__ import annotations

import numpy as np
import pytest

import graphopt
from graphopt.accuracy.budget import Budget
from graphopt.accuracy.datasets import in_batches
from graphopt.ir.graph import Graph
from graphopt.passes._least_squares import LeastSquares
from graphopt.passes.prune_units import PruneUnits
from graphopt.pipeline.report import Report
from graphopt.testing import assert_rewrites, assert_unchanged, parse

NETWORK = """(float[N,8] x) => (float[N,4] y)
<float[8,128] w, float[128] b, float[128,4] v, float[4] c> {
    h = MatMul(x, w)
    s = Add(b, h)
    r = Relu(s)
    y = Gemm(r, v, c)
}"""


def test_constants_between_the_layers_lose_the_same_units() -> None:
    assert_rewrites(
        PruneUnits(),
        """(float[N,8] x) => (float[N,4] y)
        <float[64,8] w, float[64] s, float two = {2}, float[64,4] v> {
            h = Gemm<transB=1>(x, w)
            a = Mul(h, s)
            b = Add(two, a)
            r = Tanh(b)
            y = MatMul(r, v)
        }""",
        """(float[N,8] x) => (float[N,4] y)
        <float[8,16] w, float[16] s, float two = {2}, float[16,4] v, float[4] shift> {
            h = Gemm(x, w)
            a = Mul(h, s)
            b = Add(two, a)
            r = Tanh(b)
            u = MatMul(r, v)
            y = Add(u, shift)
        }""",
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("=> (float[N,4] y)", "=> (float[N,4] y, float[N,128] r)"), "also read elsewhere"),
        (("r = Relu(s)", "r = Softmax(s)"), None),
        (("s = Add(b, h)", "s = Add(h, h)"), None),
        (("128", "24"), None),
    ],
)
def test_left_alone(change: tuple[str, str], reason: str | None) -> None:
    assert_unchanged(PruneUnits(), NETWORK.replace(*change), reason)


def test_two_layers_without_units_between() -> None:
    text = """(float[N,8] x) => (float[N,4] y) <float[8,64] w, float[64,4] v> {
        h = MatMul(x, w)
        y = MatMul(h, v)
    }"""
    assert_unchanged(PruneUnits(), text)


def network(dead: int = 0, copies: int = 1) -> Graph:
    """The network with some units that never fire and others that fire alike."""
    graph, rng = parse(NETWORK), np.random.default_rng(0)
    by_shape = {value.shape: value for value in graph.constants()}
    weight = np.repeat(rng.normal(size=(8, 128 // copies)), copies, axis=1)
    bias = np.repeat(rng.normal(size=128 // copies), copies)
    bias[:dead] = -100
    by_shape[(8, 128)].const = weight.astype(np.float32)
    by_shape[(128,)].const = bias.astype(np.float32)
    return graph


def pruned(graph: Graph, limit: float) -> tuple[Graph, Report]:
    rows = np.random.default_rng(1).normal(size=(2000, 8)).astype(np.float32)
    budget, report = Budget(in_batches({"x": rows}), limit, "max-error"), Report()
    return graphopt.optimize(graph, passes="prune-units", budget=budget, report=report), report


def widths(graph: Graph) -> set[int]:
    return {v.shape[1] for v in graph.constants() if v.rank == 2 and v.shape[0] == 8}  # type: ignore


def test_units_that_never_fire_go_for_nothing() -> None:
    found, report = pruned(network(dead=100), 1e-3)
    assert widths(found) == {32}
    assert report.facts["compression"]["held_out"]["max_error"] < 1e-4


def test_units_that_fire_alike_are_made_up_for() -> None:
    found, report = pruned(network(copies=8), 1e-2)
    assert widths(found) == {16}
    assert report.facts["compression"]["held_out"]["max_error"] <= 1e-2


def test_nothing_goes_that_matters() -> None:
    with pytest.raises(graphopt.GraphoptError, match="costs more"):
        pruned(network(), 1e-4)


def test_the_loss_is_what_is_left_of_the_outputs() -> None:
    rng = np.random.default_rng(0)
    data, outgoing = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 12)), rng.normal(size=(12, 3))
    fit = LeastSquares.of(data, outgoing)
    for count in (4, 8):
        kept = fit.order[:count]
        mixing, offset, error = fit.keep(kept)
        exact = data @ outgoing
        lost = exact - (data[:, kept] @ mixing + offset) @ outgoing
        share = np.sqrt(np.square(lost).sum() / np.square(exact - exact.mean(axis=0)).sum())
        assert error == pytest.approx(share, abs=2e-3)  # the ridge
    assert fit.keep(fit.order[:8])[2] < 2e-3  # 6 units span the others


@pytest.mark.parametrize("last", ["Gemm", "MatMul"])
def test_layers_in_a_row_are_pruned_together(last: str) -> None:
    text = """(float[N,8] x) => (float[N,4] y)
    <float[8,64] w, float[64,96] v, float[96] b, float[96,4] u> {
        h = MatMul(x, w)
        r = Relu(h)
        i = MatMul(r, v)
        s = Add(i, b)
        t = Relu(s)
        y = LAST(t, u)
    }"""
    graph = parse(text.replace("LAST", last))
    rows = np.random.default_rng(1).normal(size=(2000, 8)).astype(np.float32)
    budget = Budget(in_batches({"x": rows}), 1e3, "max-error")
    found = graphopt.optimize(graph, passes="prune-units", budget=budget)
    sizes = [node.output.shape[-1] for node in found.nodes if node.op in ("Gemm", "MatMul")]  # type: ignore
    assert sizes[0] < 64 and sizes[1] < 96 and sizes[2] == 4
