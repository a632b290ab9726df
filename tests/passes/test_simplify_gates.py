"""Gates between a value and a copy of it take fewer ops; others stay."""

from __future__ import annotations

import pytest

from graphopt.passes.simplify_gates import SimplifyGates
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,3] x, float[N,3] p) => (float[] y)
    <float[3] s = {{{}}}, float one = {{1}}, float two = {{2}}, float[1,1,3] deep,
     float[3] r> {{ {} }}"""
SMALL, NEAR_ONE = "0.25, -0.5, -3.0", "0.25, 0.99, 0.5"
SCALED = "q = Add(p, s) t = Mul(x, q) y = Mul(t, r)"
PLAIN = "q = Mul(p, r) t = Add(q, s) y = Mul(x, t)"

FORMS = [
    "a = Mul(p, x) q = Sub(one, p) t = Mul(s, q) b = Mul(t, x) y = Add(a, b)",
    "a = Mul(x, p) q = Sub(one, p) t = Mul(q, x) b = Mul(t, s) y = Add(b, a)",
    "a = Mul(p, x) q = Sub(one, p) t = Mul(x, s) b = Mul(t, q) y = Add(a, b)",
]


@pytest.mark.parametrize("before", FORMS)
@pytest.mark.parametrize(("slopes", "after"), [(SMALL, SCALED), (NEAR_ONE, PLAIN)])
def test_forms(before: str, slopes: str, after: str) -> None:
    assert_rewrites(SimplifyGates(), TEXT.format(slopes, before), TEXT.format(slopes, after))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (FORMS[0].replace("Sub(one, p)", "Sub(two, p)"), "do not add up to 1"),
        (FORMS[0].replace("Mul(s, q)", "Mul(deep, q)"), "do not add up to 1"),
        (FORMS[0] + " z = Relu(q)", "read elsewhere"),
        (FORMS[0].replace("b = Mul(t, x)", "b = Mul(t, p)"), None),
    ],
)
def test_others_stay(body: str, reason: str | None) -> None:
    text = TEXT.format(SMALL, body)
    if "z = " in body:
        text = text.replace("(float[] y)", "(float[] y, float[] z)")
    assert_unchanged(SimplifyGates(), text, reason)
