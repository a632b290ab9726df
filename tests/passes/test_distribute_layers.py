"""Weights over copies, sums and differences are added up; other layers stay."""

from __future__ import annotations

import pytest

from graphopt.passes.distribute_layers import DistributeLayers
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,1,4] q, float[N,5,4] h, float[N,5,2] z, float[N,4] f, float[N,5,M] m,
     float[N,5,P] r, float[4] v)
    => (float[] y)
    <float[16,8] w, float[12,8] w3, float[8,8] w2, float[4,8] w1, float[4,8] other, float[2,8] wz,
     float[6,8] wm,
     float[10,8] w5, float[8] b, float[5,8] rows, int64[3] five = {1, 5, 1}> { BODY }"""


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (  # DIN
            """e = Expand(q, five) d = Sub(e, h) p = Mul(e, h) c = Concat<axis=-1>(e, h, d, p)
               o = MatMul(c, w) y = Add(b, o)""",
            """e = Expand(q, five) p = Mul(e, h) c = Concat<axis=2>(h, p) o = MatMul(c, w2)
               s = MatMul(q, w1) t = Add(s, b) y = Add(o, t)""",
        ),
        (
            "e = Expand(q, five) c = Concat<axis=2>(e, z) y = MatMul(c, wm)",
            "o = MatMul(z, wz) s = MatMul(q, w1) y = Add(o, s)",
        ),
        (
            "d = Sub(h, q) t = Add(d, h) c = Concat<axis=2>(h, t) y = MatMul(c, w2)",
            "o = MatMul(h, w1) s = MatMul(q, other) y = Add(o, s)",
        ),
        ("c = Concat<axis=2>(h, h, h) y = MatMul(c, w3)", "y = MatMul(h, w1)"),
        (
            "d = Sub(h, q) c = Concat<axis=2>(d, z, q5) y = MatMul(c, w5)",
            "c = Concat<axis=2>(h, z) o = MatMul(c, wm) s = MatMul(q, w1) y = Add(o, s)",
        ),
    ],
)
def test_weights_are_added_up(body: str, after: str) -> None:
    body = body.replace(
        "d = Sub(h, q) c = Concat<axis=2>(d, z, q5)",
        "q5 = Expand(q, five) d = Sub(h, q) c = Concat<axis=2>(d, z, q5)",
    )
    assert_rewrites(DistributeLayers(), TEXT.replace("BODY", body), TEXT.replace("BODY", after))


def test_parts_that_repeat_over_different_axes() -> None:
    """Many candidates, each against every item of one history."""
    text = """(float[N,3,1,4] q, float[N,1,5,4] h) => (float[] y)
        <float[16,8] w, float[4,8] w1, float[4,8] w2, float[4,8] w3, int64[4] grid = {1, 3, 5, 1}>
        { BODY }"""
    before = """e = Expand(q, grid) f = Expand(h, grid) d = Sub(e, f) p = Mul(e, f)
        c = Concat<axis=3>(e, f, d, p) y = MatMul(c, w)"""
    after = """e = Expand(q, grid) f = Expand(h, grid) p = Mul(e, f) o = MatMul(p, w1)
        s = MatMul(q, w2) a = Add(o, s) t = MatMul(h, w3) y = Add(a, t)"""
    assert_rewrites(DistributeLayers(), text.replace("BODY", before), text.replace("BODY", after))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("c = Concat<axis=2>(h, z) y = MatMul(c, wm)", "nothing is computed twice"),
        ("c = Concat<axis=1>(f, f) y = MatMul(c, w2)", "rows of several axes"),
        ("c = Concat<axis=1>(h, h) y = MatMul(c, w1)", "rows of several axes"),
        ("c = Concat<axis=2>(r, m) y = MatMul(c, wm)", "widths of its parts"),
        ("p = Mul(h, q) c = Concat<axis=2>(h, p) y = MatMul(c, w2)", "nothing is computed twice"),
        (
            "e = Expand(q, five) c = Concat<axis=2>(e, z) y = MatMul(c, wm) z1 = Relu(c)",
            "read elsewhere",
        ),
        ("o = MatMul(h, w1) s = MatMul(q, w1) t = Add(o, s) y = Add(t, rows)", "smaller"),
        ("o = MatMul(v, w1) p = Relu(o) t = Add(o, p) y = Add(t, b)", "smaller"),
        ("o = MatMul(h, w1) p = Relu(o) t = Add(o, p) y = Add(t, b)", "smaller"),
    ],
)
def test_others_stay(body: str, reason: str) -> None:
    text = TEXT.replace("BODY", body)
    if "z1" in body:
        text = text.replace("(float[] y)", "(float[] y, float[] z1)")
    assert_unchanged(DistributeLayers(), text, reason)
