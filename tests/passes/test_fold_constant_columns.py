"""Columns that are the same in all rows go into the bias of the layer."""

from __future__ import annotations

import pytest

from graphopt.passes.fold_constant_columns import FoldConstantColumns
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,4] x, float[N,1] g) => (float[] y) <int64[1] two = {{2}},
    float[7,8] w, float[6,8] v, float[8,6] vt, float[2,8] small, float[8] b, float[1,2] row,
    float[1] half = {{0.5}}, float[6,8] nan> {{
    n = Shape<end=1>(x) s = Concat<axis=0>(n, two) {} }}"""
PLAIN = TEXT.replace("n = Shape<end=1>(x) s = Concat<axis=0>(n, two) ", "")
ZEROS = "z = ConstantOfShape(s) "


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (ZEROS + "c = Concat<axis=1>(x, z) y = Gemm(c, v, b)", "y = Gemm(x, w4, b)"),
        (ZEROS + "c = Concat<axis=-1>(z, x) y = Gemm(c, v)", "y = Gemm(x, w4, b)"),
        (
            "z = ConstantOfShape<value=float[1] {2.5}>(s) c = Concat<axis=1>(x, z, g)"
            " y = Gemm<alpha=0.5, beta=2.0>(c, w, b)",
            "c = Concat<axis=1>(x, g) y = Gemm<alpha=0.5>(c, w5, b)",
        ),
        (
            "z = Expand(row, s) c = Concat<axis=1>(x, z) y = Gemm<transB=1>(c, vt, b)",
            "y = Gemm<transB=1>(x, w4t, b)",
        ),
        ("z = Expand(half, s) c = Concat<axis=1>(x, z) y = Gemm(c, v, b)", "y = Gemm(x, w4, b)"),
    ],
)
def test_columns_go(body: str, after: str) -> None:
    wanted = PLAIN.replace("float[6,8] v,", "float[4,8] w4, float[5,8] w5, float[8,4] w4t,")
    assert_rewrites(FoldConstantColumns(), TEXT.format(body), wanted.format(after))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("r = Expand(g, s) c = Concat<axis=1>(x, r) y = Gemm(c, v, b)", "known row"),
        (ZEROS + "c = Concat<axis=1>(x, z) y = Gemm(c, v, b) q = Exp(c)", "also read elsewhere"),
        (ZEROS + "c = Concat<axis=1>(x, z) y = Gemm(c, v, g)", "not a constant per column"),
        (ZEROS + "c = Concat<axis=1>(z, z, z) y = Gemm(c, v, b)", "nothing else to join"),
        ("c = Concat<axis=1>(x, g, g) y = Gemm(c, v, b)", "known row"),
        (ZEROS + "c = Concat<axis=1>(x, z) y = MatMul(c, v)", None),
    ],
)
def test_others_stay(body: str, reason: str | None) -> None:
    text = TEXT.replace("(float[] y)", "(float[] y, float[] q)") if "q = " in body else TEXT
    assert_unchanged(FoldConstantColumns(), text.format(body), reason)


def test_weights_that_are_not_finite_stay() -> None:
    rest = ", ".join(["0"] * 47)
    text = TEXT.replace("float[6,8] nan", f"float[6,8] nan = {{{{{rest}, inf}}}}")
    body = ZEROS + "c = Concat<axis=1>(x, z) y = Gemm(c, nan, b)"
    assert_unchanged(FoldConstantColumns(), text.format(body), "not finite")
