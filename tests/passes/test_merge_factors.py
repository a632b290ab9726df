"""Two layers as one: which ones, and what their biases become."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.merge_factors import MergeFactors
from graphopt.pipeline.base import PassContext
from graphopt.testing import assert_keeps_outputs, assert_unchanged, parse

HEAD = """(float[N,6] x) => (float[N,4] y)
<float[6,8] a, float[8,6] at, float[8,4] b, float[4,8] bt, float[8] c, float[4] d, float[1] e>"""


@pytest.mark.parametrize(
    ("first", "second", "made"),
    [
        ("MatMul(x, a)", "MatMul(u, b)", "MatMul"),
        ("Gemm(x, a, c)", "MatMul(u, b)", "Gemm"),
        ("MatMul(x, a)", "Gemm(u, b, d)", "Gemm"),
        ("Gemm(x, a, c)", "Gemm(u, b, d)", "Gemm"),
        ("Gemm<transB=1, alpha=0.5, beta=2.0>(x, at, c)", "Gemm<alpha=3.0>(u, b)", "Gemm"),
        ("Gemm(x, a, e)", "Gemm<transB=1, beta=0.5>(u, bt, e)", "Gemm"),
    ],
)
def test_weights_and_biases(first: str, second: str, made: str) -> None:
    graph = parse(f"{HEAD} {{ u = {first}  y = {second} }}")
    assert_keeps_outputs(MergeFactors(), graph)
    assert [n.op for n in graph.nodes] == [made]


def test_rows_of_several_axes() -> None:
    graph = parse(
        """(float[N,5,6] x) => (float[N,5,4] y) <float[6,8] a, float[8,4] b> {
            u = MatMul(x, a)
            y = MatMul(u, b)
        }"""
    )
    assert_keeps_outputs(MergeFactors(), graph)
    assert len(graph) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            """(float[N,64] x) => (float[N,64] y) <float[64,8] a, float[8,64] b> {
                u = MatMul(x, a)
                y = MatMul(u, b)
            }""",
            "fewer products",
        ),
        (
            f"{HEAD.replace('y)', 'y, float[N,8] u)')} {{ u = MatMul(x, a)  y = MatMul(u, b) }}",
            None,
        ),
        (f"{HEAD} {{ u = MatMul(x, a)  r = Relu(u)  y = MatMul(r, b) }}", None),
        (
            """(float[6,6] x) => (float[6,6] y) <float[6,6] a, float[6,6] b> {
                u = Gemm<transA=1>(x, a)
                y = MatMul(u, b)
            }""",
            "transposed",
        ),
        (
            """(float[3,6] x) => (float[3,4] y) <float[6,8] a, float[3,8] c, float[8,4] b> {
                u = Gemm(x, a, c)
                y = MatMul(u, b)
            }""",
            "per column",
        ),
    ],
)
def test_left_alone(text: str, reason: str | None) -> None:
    assert_unchanged(MergeFactors(), text, reason)


@pytest.mark.parametrize(("element", "says"), [(np.inf, "not all numbers"), (1e38, "too large")])
def test_weights_beyond_their_dtype(element: float, says: str) -> None:
    graph = parse(f"{HEAD} {{ u = MatMul(x, a)  y = MatMul(u, b) }}")
    first, second = graph.constants()
    first.const = np.full((6, 8), element, np.float32)
    second.const = np.full((8, 4), 1e3, np.float32)
    ctx = PassContext()
    assert not MergeFactors().run(graph, ctx)
    assert any(says in why for _, _, why in ctx.stats.refusals)
