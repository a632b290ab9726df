"""Constants meet where that keeps them finite, normal and no larger."""

from __future__ import annotations

import pytest

from graphopt.passes.reassociate import Reassociate
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,4] x, int64[N,4] i) => (float[] y)
    <float zero = {{0}}, float two = {{2}}, float[4] b, float[4] c, float[4,1] tall,
     float[1,4] wide, float big = {{3e38}}, float small = {{1e-30}},
     float[3,1,2] three = {{0,0,0,0,0,0}},
     int64[2] four = {{4, 4}}, int64[1] v0 = {{0}}, int64[1] v1 = {{1}}, int64[1] v2 = {{2}},
     int64 k = {{2}}> {{ {} y = Sigmoid(h) }}"""


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("a = Add(x, zero) h = Exp(a)", "h = Exp(x)"),
        ("a = Sub(x, zero) h = Exp(a)", "h = Exp(x)"),
        ("a = Add(x, b) h = Add(a, c)", "h = Add(x, b)"),
        ("a = Add(b, x) h = Add(two, a)", "h = Add(x, b)"),
        ("a = Mul(x, b) h = Mul(c, a)", "h = Mul(x, b)"),
        ("a = Mul(x, two) d = Mul(a, two) h = Mul(d, b)", "h = Mul(x, b)"),
    ],
)
def test_constants_meet(body: str, after: str) -> None:
    assert_rewrites(Reassociate(), TEXT.format(body), TEXT.format(after))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("p = Slice(x, v0, v2, v1) a = Add(p, three) h = Exp(a)", "broadcasts"),
        ("r = Reshape(x, four) a = Add(r, tall) h = Add(a, wide)", "larger than each"),
        ("a = Mul(x, big) h = Mul(a, big)", "normal numbers"),
        ("a = Mul(x, small) h = Mul(a, small)", "normal numbers"),
        ("a = Add(x, b) h = Add(a, c) z = Exp(a)", "also read elsewhere"),
        ("a = Add(x, b) h = Mul(a, c)", None),
        ("a = Sub(x, b) h = Sub(a, c)", None),
        ("a = Add(i, k) d = Add(a, k) h = Cast<to=1>(d)", None),
        ("a = Add(x, two) h = Exp(a)", None),
    ],
)
def test_others_stay(body: str, reason: str | None) -> None:
    outputs = "=> (float[] y, float[] z)" if "z = " in body else "=> (float[] y)"
    text = TEXT.format(body).replace("=> (float[] y)", outputs)
    assert_unchanged(Reassociate(), text, reason)
