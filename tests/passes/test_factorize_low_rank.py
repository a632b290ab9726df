"""Thin factors: which layers, how thin, and that they fit the inputs and not only the weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import graphopt
from graphopt.accuracy.budget import Budget
from graphopt.accuracy.datasets import in_batches
from graphopt.ir.graph import Graph, Value
from graphopt.passes.factorize_low_rank import FactorizeLowRank, whitened_svd
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.report import Report
from graphopt.testing import Lavish, assert_rewrites, assert_unchanged, parse

DEEP = """(float[N,96] x) => (float[N] y)
<float[96,128] w, float[128,96] v, float[96] u> {
    a = MatMul(x, w)
    b = Relu(a)
    c = MatMul(b, v)
    d = Relu(c)
    y = MatMul(d, u)
}"""


def test_three_dimensions() -> None:
    assert_rewrites(
        FactorizeLowRank(),
        "(float[N,2,64] x) => (float[N,2,64] y) <float[64,64] w> { y = MatMul(x, w) }",
        """(float[N,2,64] x) => (float[N,2,64] y) <float[64,8] first, float[8,64] second> {
            u = MatMul(x, first)
            y = MatMul(u, second)
        }""",
    )


def test_transposed_weights_and_other_attributes() -> None:
    assert_rewrites(
        FactorizeLowRank(),
        """(float[N,64] x) => (float[N,80] y) <float[80,64] w, float[80] b> {
            y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b)
        }""",
        """(float[N,64] x) => (float[N,80] y)
        <float[64,8] first, float[8,80] second, float[80] b> {
            u = MatMul(x, first)
            y = Gemm<alpha=0.5, beta=2.0>(u, second, b)
        }""",
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(float[N,16] x) => (float[N,16] y) <float[16,16] w> { y = MatMul(x, w) }", None),
        (
            """(float[N,64] x) => (float[N,64] y, float[64,64] t) <float[64,64] w> {
                y = MatMul(x, w)
                t = Transpose(w)
            }""",
            "also read elsewhere",
        ),
        (
            """(float[64,N] x) => (float[N,64] y) <float[64,64] w> {
                y = Gemm<transA=1>(x, w)
            }""",
            "transposed",
        ),
        (
            """(float[N,64] x) => (float[N,64] y) <float[64,32] a, float[32,64] b> {
                u = MatMul(x, a)
                y = MatMul(u, b)
            }""",
            "two factors already",
        ),
        ("(float[N,64] x, float[64,64] w) => (float[N,64] y) { y = MatMul(x, w) }", None),
    ],
)
def test_left_alone(text: str, reason: str | None) -> None:
    assert_unchanged(FactorizeLowRank(), text, reason)


def test_nothing_is_lost_at_full_rank() -> None:
    rng = np.random.default_rng(0)
    weight, data = rng.normal(size=(12, 7)), rng.normal(size=(50, 12))
    left, values, right = whitened_svd(weight, data)
    np.testing.assert_allclose(left * values @ right, weight, atol=1e-12)


def test_factors_fit_the_inputs() -> None:
    """Inputs that live in 3 dimensions need rank 3, whatever the weight."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(40, 30))
    data = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 40))
    left, values, right = whitened_svd(weight, data)
    cut = left[:, :3] * values[:3] @ right[:3]
    lost = np.linalg.norm(data @ (weight - cut)) / np.linalg.norm(data @ weight)
    assert lost < 1e-2  # the ridge gives a little weight to directions that are never seen


def planted(rank: int) -> Graph:
    """The deep model with weights of low rank."""
    graph, rng = parse(DEEP), np.random.default_rng(0)
    for value in graph.constants():
        if value.const is not None and value.const.size > 1000:
            rows, columns = value.const.shape
            low = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
            value.const = (low / rows).astype(np.float32)
    return graph


def rows(count: int = 600) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 96)).astype(np.float32)


def test_the_budget_finds_the_rank() -> None:
    graph, report = planted(8), Report()
    budget = Budget(in_batches({"x": rows()}), 1e-3, "max-error")
    found = graphopt.optimize(graph, passes="factorize-low-rank", budget=budget, report=report)
    shapes = sorted(v.shape for v in found.constants() if v.rank == 2)  # type: ignore[type-var]
    assert shapes == [(8, 96), (8, 128), (96, 8), (128, 8)]
    before, after = report.facts["constant_bytes"]
    assert after < 0.2 * before


def test_factors_that_would_not_be_smaller_are_not_offered() -> None:
    """A random matrix of 96 x 128 needs most of its rank even to lose a third."""
    ctx = PassContext(budget=FullRank())
    assert not list(FactorizeLowRank().propose(parse(DEEP), ctx))
    larger = list(FactorizeLowRank(max_share=2.0).propose(parse(DEEP), ctx))
    assert larger
    assert all(int(p.what.removeprefix("rank ")) > 50 for p in larger)


class FullRank(Lavish):
    """Calibration data that live in every dimension."""

    def observe(self, graph: Graph, values: Sequence[Value]) -> list[list[np.ndarray]]:
        rng = np.random.default_rng(0)
        return [[rng.normal(size=(500, value.tensor.dims[-1]))] for value in values]
