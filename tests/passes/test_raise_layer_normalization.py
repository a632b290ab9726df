"""Layer normalization written out becomes one op; other normalizations stay."""

from __future__ import annotations

import pytest

from graphopt.passes.raise_layer_normalization import RaiseLayerNormalization
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,5,8] x, float[N,5,M] z) => (float[] y)
    <int64[1] axis = {-1}, int64[1] last = {2}, int64[1] first = {1}, float two = {2},
     float three = {3}, float e = {0.001}, float[8] es, float[8] ones, float[8] g, float[1,1,8] g3,
     float[5,8] rows, float[8] b, float half = {0.5}> { BODY }"""
NORMAL = """m = ReduceMean(x, axis) d = Sub(x, m) s = Pow(d, two) v = ReduceMean(s, axis)
    w = Add(v, e) r = Sqrt(w) """


def text(body: str) -> str:
    return TEXT.replace("BODY", body)


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (NORMAL + "n = Div(d, r) h = Mul(n, g) y = Add(h, b)", "(x, g, b)"),
        (NORMAL + "n = Div(d, r) h = Mul(g3, n) y = Add(b, h)", "(x, g, b)"),
        (NORMAL + "n = Div(d, r) y = Mul(n, half)", "(x, g)"),
        (NORMAL + "y = Div(d, r)", "(x, ones)"),
        (NORMAL + "i = Reciprocal(r) y = Mul(d, i)", "(x, ones)"),
        (NORMAL.replace("Pow(d, two)", "Mul(d, d)") + "n = Div(d, r) y = Add(n, b)", "(x, g, b)"),
        (NORMAL.replace("axis)", "last)") + "y = Div(d, r)", "(x, ones)"),
        (
            NORMAL.replace("s = Pow", "d2 = Sub(x, m) s = Pow").replace("Pow(d,", "Pow(d2,")
            + "y = Div(d, r)",
            "(x, ones)",
        ),
    ],
)
def test_forms(body: str, after: str) -> None:
    wanted = f"y = LayerNormalization<epsilon=0.001>{after}"
    assert_rewrites(RaiseLayerNormalization(), text(body), text(wanted))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (NORMAL.replace("two", "three") + "y = Div(d, r)", "another power"),
        (NORMAL.replace("axis)", "first)") + "y = Div(d, r)", "another axis"),
        (NORMAL.replace("s, axis", "s, first") + "y = Div(d, r)", None),
        (NORMAL.replace("(v, e)", "(v, es)") + "y = Div(d, r)", "epsilon is no number"),
        (NORMAL.replace("(x,", "(z,") + "y = Div(d, r)", "known width"),
        (NORMAL + "y = Div(x, r)", None),
        (NORMAL + "y = Div(d, r) k = Relu(d)", "read elsewhere"),
        ("n = LayerNormalization(x, g) y = Mul(n, rows)", "per column"),
        ("n = LayerNormalization(x, g) y = Add(n, rows)", "per column"),
    ],
)
def test_others_stay(body: str, reason: str | None) -> None:
    source = text(body)
    if "k = " in body:
        source = source.replace("(float[] y)", "(float[] y, float[] k)")
    assert_unchanged(RaiseLayerNormalization(), source, reason)
