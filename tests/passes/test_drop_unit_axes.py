"""Samples kept as columns become rows of a matrix."""

from __future__ import annotations

import pytest

from graphopt.passes.drop_unit_axes import DropUnitAxes
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,4] x, float[N,4,1] k, float[N,1] d, float[N,3,4] z) => (float[] y) <
    float whole = {{1}}, float[3,4] w, float[4,3] wt, float[4,1] b, float[4] row,
    float[1,1,4] wide, float half = {{0.5}}, float[1] one = {{1}}, int64[3] up = {{-1, 4, 1}},
    int64[3] up3 = {{-1, 3, 1}}, int64[3] up9 = {{-1, 9, 1}}, int64[3] dot = {{-1, 1, 1}},
    int64[2] down = {{-1, 4}}, int64[3] flat = {{-1, 1, 4}}, int64[1] all = {{-1}},
    int64[2] three = {{-1, 3}}, float[2,3,4] stack, int64[3] square = {{-1, 4, 4}},
    int64[3] cut = {{-1, 2, 2}}> {{
    {} y = Erf(s) }}"""
C = "c = Reshape(x, up) "


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("s = MatMul(w, k)", "r = Reshape(k, down) m = MatMul(r, wt) s = Reshape(m, up3)"),
        (C + "s = MatMul(w, c)", "m = MatMul(x, wt) s = Reshape(m, up3)"),
        ("s = MatMul(x, row)", "m = MatMul(x, b) s = Reshape(m, all)"),
        ("s = MatMul(z, row)", "m = MatMul(z, b) s = Reshape(m, three)"),
        (C + "s = Add(c, b)", "a = Add(x, row) s = Reshape(a, up)"),
        (C + "s = Sub(b, c)", "a = Sub(row, x) s = Reshape(a, up)"),
        (C + "s = Mul(c, half)", "a = Mul(x, half) s = Reshape(a, up)"),
        (C + "s = Div(c, one)", "a = Div(x, whole) s = Reshape(a, up)"),
        (C + "e = Reshape(d, dot) s = MatMul(c, e)", "a = Mul(x, d) s = Reshape(a, up)"),
        (C + "s = Tanh(c)", "a = Tanh(x) s = Reshape(a, up)"),
        (C + "e = Reshape(d, dot) s = Concat<axis=-2>(c, e, c)",
         "a = Concat<axis=1>(x, d, x) s = Reshape(a, up9)"),
        ("h = Reshape(x, cut) i = Reshape(h, up) s = Add(i, b)",
         "h = Reshape(x, cut) i = Reshape(h, down) a = Add(i, row) s = Reshape(a, up)"),
        (C + "s = Softmax<axis=1>(c)", "a = Softmax<axis=-1>(x) s = Reshape(a, up)"),
        (C + "j = Concat<axis=2>(c, c, c, c) s = MatMul(j, k)",
         "j = Concat<axis=1>(x, x, x, x) t = Reshape(j, square) r = Reshape(k, flat)"
         " m = MatMul(r, t) s = Reshape(m, up)"),
        (C + "f = Reshape(x, flat) s = MatMul(c, f)",
         C + "f = Reshape(x, flat) s = Mul(c, f)"),
    ],
)  # fmt: skip
def test_columns_become_rows(body: str, after: str) -> None:
    assert_rewrites(DropUnitAxes(), TEXT.format(body), TEXT.format(after))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("s = MatMul(z, k)", "it adds up products"),
        ("s = MatMul(stack, k2)", "one matrix"),
        ("s = MatMul(z, wt)", None),
        ("s = Add(k, b)", "not a vector reshaped"),
        (C + "s = Add(c, k)", "not a vector reshaped"),
        (C + "s = Concat<axis=1>(c, k)", "not a vector reshaped"),
        (C + "s = Concat<axis=2>(c, c)", None),
        (C + "s = Softmax<axis=-1>(c)", None),
        ("s = Softmax<axis=1>(k)", "not a vector reshaped"),
        (C + "j = Concat<axis=2>(c, c, c, k) s = MatMul(j, k)", "not a vector reshaped"),
        (C + "u = Reshape(x, square4) j = Concat<axis=2>(c, c, u) s = MatMul(j, k)", "mix columns"),
        (C + "s = Add(c, wide)", None),
        ("s = Mul(x, d)", None),
        ("s = MatMul(x, b)", None),
        ("s = MatMul(row, x4)", None),
    ],
)
def test_others_stay(body: str, reason: str | None) -> None:
    text = TEXT.replace("float[N,3,4] z)", "float[N,3,4] z, float[2,4,1] k2, float[4,N] x4)")
    body = body.replace("Reshape(x, square4)", "Concat<axis=-1>(k, k)")
    assert_unchanged(DropUnitAxes(), text.format(body), reason)
