"""Gemms between reshapes work on rows of several axes; others stay."""

from __future__ import annotations

import pytest

from graphopt.passes.unflatten_gemms import UnflattenGemms
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,5,4] x, float[5,N,2,2] z, float[N,8] g) => (float[] y)
    <float[4,8] w, float[8,4] v, float[8] b, float[1,8] row, int64[2] flat = {-1, 4},
     int64[3] rows = {-1, 5, 8}, int64[3] trows = {5, -1, 8}, int64[3] inner = {5, -1, 4},
     int64[2] two = {-1, 8}, int64[3] other = {-1, 10, 4}> { BODY }"""


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (
            "r = Reshape(x, flat) h = Gemm(r, w, b) y = Reshape(h, rows)",
            "h = MatMul(x, w) y = Add(h, b)",
        ),
        ("r = Reshape(x, flat) h = Gemm(r, w) y = Reshape(h, rows)", "y = MatMul(x, w)"),
        (
            "r = Reshape(x, flat) h = Gemm<transB=1>(r, v, row) y = Reshape(h, rows)",
            "h = MatMul(x, w) y = Add(h, b)",
        ),
        (
            "r = Reshape(z, flat) h = Gemm(r, w, b) y = Reshape(h, trows)",
            "r = Reshape(z, inner) h = MatMul(r, w) y = Add(h, b)",
        ),
    ],
)
def test_rows_keep_their_axes(body: str, after: str) -> None:
    assert_rewrites(UnflattenGemms(), TEXT.replace("BODY", body), TEXT.replace("BODY", after))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("r = Reshape(x, flat) h = Gemm<alpha=2.0>(r, w, b) y = Reshape(h, rows)", "scaled"),
        ("r = Reshape(x, flat) h = Gemm(r, w, b) y = Reshape(h, two)", "more axes"),
        ("r = Reshape(x, flat) h = Gemm(r, w, b) y = Reshape(h, other)", "more axes"),
        (
            "r = Reshape(x, flat) h = Gemm(r, w, b) y = Reshape(h, rows) z1 = Relu(h)",
            "read elsewhere",
        ),
        ("h = Gemm(g, v, b4) y = Reshape(h, rows4)", None),
    ],
)
def test_others_stay(body: str, reason: str | None) -> None:
    text = TEXT.replace("BODY", body)
    if "b4" in body:
        text = text.replace("float[8] b,", "float[8] b, float[4] b4, int64[3] rows4 = {-1, 1, 4},")
    if "z1" in body:
        text = text.replace("(float[] y)", "(float[] y, float[] z1)")
    assert_unchanged(UnflattenGemms(), text, reason)
