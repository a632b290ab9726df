"""Products and their biases become Gemms; others stay."""

from __future__ import annotations

import pytest

from graphopt.passes.fuse_gemm import FuseGemm
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,4] x, float[N,3,4] z, float[4,8] v, float[N,8] t) => (float[] y)
    <float[4,8] w, float[8,4] turned, float[8] b, float[1,8] row, float[3,8] rows, float one,
     float[4,1] column, float[8] wide> { BODY }"""


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("h = MatMul(x, w) y = Add(h, b)", "y = Gemm(x, w, b)"),
        ("h = MatMul(x, w) y = Add(row, h)", "y = Gemm(x, w, row)"),
        ("h = MatMul(x, v) y = Add(h, one)", "y = Gemm(x, v, one)"),
        (
            "h = Gemm<transB=1, alpha=0.5>(x, turned) y = Add(h, b)",
            "y = Gemm<transB=1, alpha=0.5>(x, turned, b)",
        ),
        ("h = Gemm<beta=0.0>(x, w) y = Add(h, b)", "y = Gemm(x, w, b)"),
    ],
)
def test_biases_go_into_products(body: str, after: str) -> None:
    assert_rewrites(FuseGemm(), TEXT.replace("BODY", body), TEXT.replace("BODY", after))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("h = MatMul(z, w) y = Add(h, b)", "two matrices"),
        ("h = MatMul(x, column) y = Add(h, wide)", "per column"),
        ("h = MatMul(z, w) y = Add(h, rows)", "two matrices"),
        ("h = MatMul(x, w) y = Add(h, t)", None),
        ("h = Gemm(x, w, b) y = Add(h, b)", None),
        ("h = MatMul(x, w) y = Sub(h, b)", None),
    ],
)
def test_others_stay(body: str, reason: str | None) -> None:
    assert_unchanged(FuseGemm(), TEXT.replace("BODY", body), reason)


def test_a_product_that_is_read_elsewhere_stays() -> None:
    text = TEXT.replace("float[] y)", "float[] y, float[] r)")
    assert_unchanged(
        FuseGemm(), text.replace("BODY", "h = MatMul(x, w) y = Add(h, b) r = Relu(h)"), "elsewhere"
    )
