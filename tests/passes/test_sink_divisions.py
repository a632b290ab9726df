"""Inner products of quotients are divided once; other quotients stay."""

from __future__ import annotations

import pytest

from graphopt.passes.sink_divisions import SinkDivisions
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,4] x, float[N,4] z, float[N,3,4] t, float[N,1] d, float[N,4] e, float[N,1,1] h,
    float[N,3,1] g, float[M] v) => (float[] y) <int64[1] last = {1}, int64[1] two = {2},
    int64[1] minus = {-1}, int64[1] none = {0}, int64[1] flat = {-1}, int64[3] row = {-1, 1, 4},
    int64[3] column = {-1, 4, 1}, int64[3] dot = {-1, 1, 1}, int64[2] three = {-1, 3},
    float[1,1] c = {2}> { """


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (
            "q = Div(x, d) p = Mul(z, q) y = ReduceSum(p, minus)",
            "p = Mul(x, z) s = ReduceSum(p, minus) y = Div(s, d)",
        ),
        (
            "q = Div(x, d) r = Div(z, d) p = Mul(q, r) y = ReduceSum(p, last)",
            "p = Mul(z, x) s = ReduceSum(p, last) u = Div(s, d) y = Div(u, d)",
        ),
        (
            "b = Reshape(x, row) q = Div(b, h) r = Div(t, g) p = Mul(q, r)"
            " y = ReduceSum<keepdims=0>(p, two)",
            "b = Reshape(x, row) p = Mul(t, b) s = ReduceSum(p, two) u = Div(s, g) w = Div(u, h)"
            " y = Reshape(w, three)",
        ),
        (
            "q = Div(x, d) p = Mul(q, q) y = ReduceSum(p, last)",
            "p = Mul(x, x) s = ReduceSum(p, last) u = Div(s, d) y = Div(u, d)",
        ),
        (
            "q = Reshape(x, row) r = Reshape(z, column) y = MatMul(q, r)",
            "p = Mul(x, z) s = ReduceSum(p, last) y = Reshape(s, dot)",
        ),
    ],
)
def test_sums_come_first(body: str, after: str) -> None:
    assert_rewrites(SinkDivisions(), f"{TEXT}{body} }}", f"{TEXT}{after} }}")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("q = Div(x, e) p = Mul(q, z) y = ReduceSum(p, last)", "differs among"),
        ("q = Div(x, d) p = Mul(q, z) y = ReduceSum(p, none)", "differs among"),
        ("q = Div(d, e) p = Mul(q, z) y = ReduceSum(p, last)", "larger than what it divides"),
        ("q = Div(x, v) p = Mul(q, z) y = ReduceSum(p, last)", "of another rank"),
        ("q = Div(x, c) p = Mul(q, z) y = ReduceSum(p, last)", None),
        ("q = Div(x, d) p = Mul(q, z) y = ReduceSum(p)", None),
        (
            "q = Div(x, d) p = Mul(q, z) s = ReduceSum(p, last) m = Exp(q) y = Add(s, m)",
            "also read elsewhere",
        ),
        ("q = Reshape(x, row) y = MatMul(q, g4)", "not two vectors"),
        ("y = MatMul(t, g4)", None),
    ],
)
def test_others_stay(body: str, reason: str | None) -> None:
    text = TEXT.replace("float[M] v", "float[4] v, float[N,4,1] g4")
    assert_unchanged(SinkDivisions(), f"{text}{body} }}", reason)


def test_integers_stay() -> None:
    body = "q = Div(x, d) p = Mul(q, z) y = ReduceSum(p, last) }"
    text = TEXT.replace("float", "int64") + body
    assert_unchanged(SinkDivisions(), text, "integers")


@pytest.mark.parametrize("size", ["T", "0"])
def test_sums_that_may_be_of_nothing_stay(size: str) -> None:
    """Weights of a history divided by their sum, which is 0 where there is no history."""
    text = f"""(float[N,{size}] x, float[N,{size}] z) => (float[N,1] y) <int64[1] last = {{1}}> {{
        d = ReduceSum(x, last) q = Div(x, d) p = Mul(q, z) y = ReduceSum(p, last) }}"""
    assert_unchanged(SinkDivisions(), text, "nothing to add")
