"""Scales and shifts per column go into weights; others stay."""

from __future__ import annotations

import pytest

from graphopt.passes.fold_affine import FoldAffine
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,4] x, float[N,8] g) => (float[] y)
    <float[4] f, float[4] o, float[4,8] w, float[8,4] v, float[8] b, float[8] s, float one = {{3}},
     float[1,4] row, float[4,1] tall, float[3,4] rows, float[3,8] brows, float[2,4,8] stack> {{
    {} y = Sigmoid(h) }}"""


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("u = Mul(x, f) h = MatMul(u, w)", "h = MatMul(x, w)"),
        ("u = Mul(one, x) h = MatMul(u, w)", "h = MatMul(x, w)"),
        ("u = Mul(x, row) h = MatMul(u, w)", "h = MatMul(x, w)"),
        ("u = Mul(x, f) h = Gemm(u, w, b)", "h = Gemm(x, w, b)"),
        (
            "u = Mul(x, f) h = Gemm<transB=1, alpha=0.5>(u, v, g)",
            "h = Gemm<transB=1, alpha=0.5>(x, v, g)",
        ),
        ("u = Add(x, o) h = Gemm(u, w, b)", "h = Gemm(x, w, b)"),
        ("u = Add(one, x) h = Gemm(u, w)", "h = Gemm(x, w, b)"),
        (
            "u = Add(x, o) h = Gemm<transB=1, alpha=0.5, beta=2.0>(u, v, b)",
            "h = Gemm<transB=1, alpha=0.5>(x, v, b)",
        ),
        ("u = MatMul(x, w) h = Mul(u, s)", "h = MatMul(x, w)"),
        ("u = MatMul(x, w) h = Mul(one, u)", "h = MatMul(x, w)"),
        (
            "u = Gemm<transB=1, beta=2.0>(x, v, b) h = Mul(u, s)",
            "h = Gemm<transB=1, beta=2.0>(x, v, b)",
        ),
        ("u = Gemm(x, w) h = Mul(u, s)", "h = Gemm(x, w)"),
        (
            "m = Mul(x, f) a = Add(m, o) u = Gemm(a, w, b) h = Mul(u, s)",
            "h = Gemm(x, w, b)",
        ),
    ],
)
def test_weights_take_it_in(body: str, after: str) -> None:
    assert_rewrites(FoldAffine(), TEXT.format(body), TEXT.format(after))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("u = Mul(x, tall) h = MatMul(u, w)", "not one number per column"),
        ("r = Reshape(x, nrows) u = Mul(r, rows) h = MatMul(u, w)", "not one number per column"),
        ("u = Mul(x, f) h = MatMul(u, stack)", "not one matrix"),
        ("t = Transpose(x) u = Mul(t, one) h = Gemm<transA=1>(u, w)", "transposed"),
        ("u = Mul(x, f) h = MatMul(u, w) k = MatMul(x, w) z = Exp(k)", "weight is also read"),
        ("u = Add(x, o) h = Gemm(u, w, g)", "bias is not a constant per column"),
        ("u = Gemm(x, w, g) h = Mul(u, s)", "bias is not a constant per column"),
        ("u = MatMul(x, w) h = Mul(u, onewide)", "not one number per column"),
        ("u = Mul(x, f) h = MatMul(u, w) z = Exp(u)", "also read elsewhere"),
        ("u = MatMul(x, w) h = Mul(u, s) z = Exp(u)", "also read elsewhere"),
        ("u = Mul(x, x) h = MatMul(u, w)", None),
        ("h = MatMul(x, w)", None),
    ],
)
def test_others_stay(body: str, reason: str | None) -> None:
    text = TEXT.replace(
        "float[1,4] row", "int64[2] nrows = {{3, 4}}, float[2,1,8] onewide, float[1,4] row"
    )
    if "z = " in body:
        text = text.replace("=> (float[] y)", "=> (float[] y, float[] z)")
    assert_unchanged(FoldAffine(), text.format(body), reason)


def test_tied_embeddings_stay_tied() -> None:
    text = """(int64[N] ids) => (float[] y) <float[9,4] table, float scale = {0.5}> {
        e = Gather(table, ids)
        u = Mul(e, scale)
        y = Gemm<transB=1>(u, table)
    }"""
    assert_unchanged(FoldAffine(), text, "also read elsewhere")
