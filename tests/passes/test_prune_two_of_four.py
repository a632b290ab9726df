"""Two of four weights: which ones go, what makes up for them, and where nothing is done."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes._reconstruction import with_damping
from graphopt.passes.prune_two_of_four import PruneTwoOfFour, is_sparse, thinned
from graphopt.pipeline.base import PassContext
from graphopt.testing import Lavish, assert_keeps_outputs, assert_unchanged, parse


def inputs(rows: int) -> np.ndarray:
    """Sixteen inputs that four tell most of."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(rows, 4)) @ np.random.default_rng(1).normal(size=(4, 16))
    return mixed + 0.2 * rng.normal(size=(rows, 16))


def test_the_others_make_up_for_those_that_go() -> None:
    """On other inputs than it was fitted on, far less is lost than by dropping the smallest."""
    weight = np.random.default_rng(2).normal(size=(16, 24))
    data = inputs(4000)
    fitted = thinned(weight, with_damping(data[:2000].T @ data[:2000] / 2000))
    order = np.abs(weight).reshape(4, 4, 24).argsort(axis=1).argsort(axis=1)
    smallest = np.where(order < 2, 0, weight.reshape(4, 4, 24)).reshape(16, 24)
    lost = [np.square(data[2000:] @ (w - weight)).mean() for w in (fitted, smallest)]
    assert is_sparse(fitted) and is_sparse(smallest) and not is_sparse(weight)
    assert lost[0] < 0.25 * lost[1]


@pytest.mark.parametrize("layer", ["MatMul(x, w)", "Gemm<transB=1>(x, w, b)"])
def test_layers(layer: str) -> None:
    text = f"(float[N,64] x) => (float[N,64] y) <float[64,64] w, float[64] b> {{ y = {layer} }}"
    graph = parse(text)
    assert_keeps_outputs(PruneTwoOfFour(), graph)
    weight = next(v.const for v in graph.constants() if v.rank == 2)
    assert weight is not None
    assert is_sparse(weight.T if "transB" in layer else weight)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(float[N,8] x) => (float[N,8] y) <float[8,8] w> { y = MatMul(x, w) }", None),
        ("(float[N,66] x) => (float[N,64] y) <float[66,64] w> { y = MatMul(x, w) }", "multiple"),
        (
            """(float[N,64] x) => (float[N,64] y, float[64,64] z) <float[64,64] w> {
                y = MatMul(x, w)
                z = Neg(w)
            }""",
            "read elsewhere",
        ),
        ("(float[64,N] x) => (float[N,64] y) <float[64,64] w> { y = Gemm<transA=1>(x, w) }", None),
        ("(double[N,64] x) => (double[N,64] y) <double[64,64] w> { y = MatMul(x, w) }", None),
    ],
)
def test_left_alone(text: str, reason: str | None) -> None:
    assert_unchanged(PruneTwoOfFour(), text, reason)


def test_weights_that_are_not_numbers() -> None:
    graph = parse("(float[N,64] x) => (float[N,64] y) <float[64,64] w> { y = MatMul(x, w) }")
    graph.constants()[0].const = np.full((64, 64), np.inf, np.float32)
    assert not list(PruneTwoOfFour().propose(graph, PassContext(budget=Lavish())))
