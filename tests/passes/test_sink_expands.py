"""Small first, then large."""

from __future__ import annotations

import pytest

from graphopt.passes.sink_expands import SinkExpands
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,1,4] q, float[N,1,1] w, float[N,20,4] k, bool[N,1,4] m) => (float[] y)
    <int64[3] r = {{1, 20, 1}}, float c = {{3}}, float[4] v, float[20,4] t> {{
    {} y = Softmax(u) }}"""


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("e = Expand(q, r) u = Mul(e, c)", "e = Mul(q, c) u = Expand(e, r)"),
        ("e = Expand(q, r) u = Sub(v, e)", "e = Sub(v, q) u = Expand(e, r)"),
        ("e = Expand(q, r) u = Add(w, e)", "e = Add(w, q) u = Expand(e, r)"),
        ("e = Expand(q, r) u = Max(e, c, w)", "e = Max(q, c, w) u = Expand(e, r)"),
        ("e = Expand(q, r) u = Relu(e)", "e = Relu(q) u = Expand(e, r)"),
        ("e = Expand(m, r) u = Cast<to=1>(e)", "e = Cast<to=1>(m) u = Expand(e, r)"),
        ("e = Expand(m, r) u = Where(e, c, w)", "e = Where(m, c, w) u = Expand(e, r)"),
        (
            "e = Expand(q, r) f = Expand(q, r) u = Mul(e, f)",
            "e = Mul(q, q) u = Expand(e, r)",
        ),
        (
            "e = Expand(q, r) n = Neg(e) u = Mul(n, c)",
            "n = Neg(q) e = Mul(n, c) u = Expand(e, r)",
        ),
    ],
)
def test_elementwise_ops_come_first(body: str, after: str) -> None:
    assert_rewrites(SinkExpands(), TEXT.format(body), TEXT.format(after))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("e = Expand(q, r) u = Exp(e)", None),
        ("e = Expand(q, r) u = Tanh(e)", None),
        ("e = Expand(q, r) u = Mul(e, k)", None),
        ("e = Expand(w, r) u = Mul(e, t)", None),
        ("e = Expand(q, r) a = Exp(e) b = Relu(e) u = Add(a, b)", "also read elsewhere"),
    ],
)
def test_other_expansions_stay(body: str, reason: str | None) -> None:
    assert_unchanged(SinkExpands(), TEXT.format(body), reason)


def test_an_expansion_that_is_an_output_stays() -> None:
    text = """(float[N,1] x) => (float[] e, float[] u) <int64[2] r = {1, 5}> {
        e = Expand(x, r)
        u = Relu(e)
    }"""
    assert_unchanged(SinkExpands(), text, "also read elsewhere")


def test_rows_are_looked_up_once() -> None:
    before = """(int64[1,3] ids, float[N] z) => (float[] y) <float[9,4] t, int64[1] three = {3}> {
        n = Shape(z)
        s = Concat<axis=0>(n, three)
        e = Expand(ids, s)
        g = Gather(t, e)
        y = Softmax(g)
    }"""
    after = """(int64[1,3] ids, float[N] z) => (float[] y)
    <float[9,4] t, int64[1] three = {3}, int64[1] one = {1}> {
        g = Gather(t, ids)
        n = Shape(z)
        s = Concat<axis=0>(n, three)
        w = Concat<axis=0>(s, one)
        e = Expand(g, w)
        y = Softmax(e)
    }"""
    assert_rewrites(SinkExpands(), before, after)


def test_an_expanded_number_is_a_filled_tensor() -> None:
    text = """(float[N,4] x) => (float[N,4] y) <float c = {{3}}> {{
        s = Shape(x)
        e = {}
        y = Softmax(e)
    }}"""
    filled = text.format("ConstantOfShape<value = float[1] {3}>(s)")
    assert_rewrites(SinkExpands(), text.format("Expand(c, s)"), filled)


def test_arithmetic_on_filled_tensors_is_arithmetic_on_numbers() -> None:
    text = """(float[N,4] x) => (float[N,4] y) <float c = {{3}}, float d = {{2}}> {{
        s = Shape(x)
        {}
        y = Softmax(e)
    }}"""
    before = text.format("f = ConstantOfShape<value = float[1] {2}>(s) e = Mul(f, c)")
    assert_rewrites(SinkExpands(), before, text.format("f = Mul(d, c) e = Expand(f, s)"))
