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


MOVED = """(float[N,4,3] x, float[N,3,8] q) => (float[] y)
    <float[4,1] tall, float[3] wide, float[4,3] all, float[4,8] w, float[12,8] v, float[6,8] u,
     float[8] b, int64[2] flat = {{-1, 12}}, int64[2] halves = {{-1, 6}}> {{
    {} y = Sigmoid(h) }}"""
TURN = "t = Transpose<perm=[0,2,1]>"


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (f"s = Mul(x, tall) {TURN}(s) h = MatMul(t, w)", f"{TURN}(x) h = MatMul(t, w)"),
        (
            "s = Mul(x, tall) f = Reshape(s, flat) h = MatMul(f, v)",
            "f = Reshape(x, flat) h = MatMul(f, v)",
        ),
        (
            "s = Mul(x, wide) f = Reshape(s, flat) h = Gemm(f, v)",
            "f = Reshape(x, flat) h = Gemm(f, v)",
        ),
        (
            "s = Mul(x, all) f = Reshape(s, flat) h = Gemm(f, v, b)",
            "f = Reshape(x, flat) h = Gemm(f, v, b)",
        ),
        (
            "s = Add(tall, x) f = Reshape(s, flat) h = Gemm(f, v, b)",
            "f = Reshape(x, flat) h = Gemm(f, v, b)",
        ),
        (
            f"m = Mul(x, tall) s = Add(m, tall) {TURN}(s) p = MatMul(t, w) h = Add(p, b)",
            f"{TURN}(x) p = MatMul(t, w) h = Add(p, b)",
        ),
    ],
)
def test_constants_move_as_their_operand_does(body: str, after: str) -> None:
    assert_rewrites(FoldAffine(), MOVED.format(body), MOVED.format(after))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"s = Mul(x, wide) {TURN}(s) h = MatMul(t, w)", "scale is not one number per column"),
        ("s = Mul(x, tall) f = Reshape(s, halves) h = MatMul(f, u)", "scale is not one number"),
        ("s = Add(x, tall) f = Reshape(s, halves) h = Gemm(f, u)", "shift is not one number"),
        (f"s = Add(x, tall) {TURN}(s) p = MatMul(t, w) h = Add(p, q)", None),
        (f"s = Add(x, tall) {TURN}(s) p = MatMul(t, w) z = Add(p, b) h = Exp(p)", "also read"),
        (f"s = Mul(x, tall) z = Exp(s) {TURN}(s) h = MatMul(t, w)", "also read"),
    ],
)
def test_constants_that_are_not_per_column_stay(body: str, reason: str | None) -> None:
    text = MOVED.replace("=> (float[] y)", "=> (float[] y, float[] z)") if "z = " in body else MOVED
    assert_unchanged(FoldAffine(), text.format(body), reason)
