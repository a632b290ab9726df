"""Squares of sums less sums of squares, in the forms that exporters give them."""

from __future__ import annotations

import pytest

from graphopt.passes.fuse_bi_interaction import FuseBiInteraction
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,3,4] x) => (float[] y) <int64[1] f = {1}, int64[1] d = {2}, int64[1] last = {-1},
    int64[1] one = {1}, float half = {0.5}, float two = {2}, float three = {3}, float[4] row,
    int64[3] tall = {-1, 1, 4}, int64[3] ones = {-1, 1, 1}> { """
SUM = "s = ReduceSum(x, f) m = Mul(x, x) b = ReduceSum(m, f) "
FM = "graphopt.BiInteraction<pooled={}, scale={}>(x) "


@pytest.mark.parametrize(
    ("squares", "rest"),
    [
        ("a = Pow(s, two) m = Mul(x, x) b = ReduceSum(m, f) ", "keepdims=0"),
        ("a = Mul(s, s) m = Pow(x, two) b = ReduceSum(m, f) ", "keepdims=0"),
        ("a = Mul(s, s) b = ReduceSumSquare(x, f) ", "keepdims=0"),
    ],
)
def test_factorization_machine(squares: str, rest: str) -> None:
    end = f"e = Sub(a, b) t = ReduceSum<{rest}>(e, d) h = Mul(half, t) y = Neg(h) }}"
    after = TEXT + "h = " + FM.format(1, 0.5) + "y = Neg(h) }"
    assert_rewrites(FuseBiInteraction(), TEXT + "s = ReduceSum(x, f) " + squares + end, after)


FLAT = """s = ReduceSum<keepdims=0>(x, f) a = Mul(s, s) m = Mul(x, x)
    b = ReduceSum<keepdims=0>(m, f) e = Sub(a, b) """


@pytest.mark.parametrize(
    ("rest", "after"),
    [
        ("h = Mul(e, half)", f"h = {FM.format(0, 0.5)}"),
        ("h = Exp(e)", f"e = {FM.format(0, 1.0)} h = Exp(e)"),
        ("m2 = Mul(e, half) h = ReduceSum(m2, last)", f"h = {FM.format(1, 0.5)}"),
        ("t = ReduceSum(e, one) h = Mul(t, half)", f"h = {FM.format(1, 0.5)}"),
        ("h = Mul(e, row)", f"e = {FM.format(0, 1.0)} h = Mul(e, row)"),
        ("u = Mul(e, half) h = ReduceSum(u, n)", f"u = {FM.format(0, 0.5)} h = ReduceSum(u, n)"),
    ],
)  # fmt: skip
def test_neural_factorization_machine(rest: str, after: str) -> None:
    text = TEXT.replace("int64[1] one", "int64[1] n = {0}, int64[1] one")
    assert_rewrites(
        FuseBiInteraction(), text + FLAT + rest + " y = Neg(h) }", text + after + " y = Neg(h) }"
    )


def test_axes_of_size_one_are_kept() -> None:
    before = TEXT + SUM + "a = Mul(s, s) e = Sub(a, b) t = ReduceSum(e, last) y = Neg(t) }"
    after = TEXT + "h = " + FM.format(1, 1.0) + "t = Reshape(h, ones) y = Neg(t) }"
    assert_rewrites(FuseBiInteraction(), before, after)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (SUM + "a = Mul(s, s) y = Sub(a, b) q = Exp(s)", "also read elsewhere"),
        (SUM + "a = Mul(s, s) y = Sub(a, b) q = Exp(b)", "also read elsewhere"),
        (SUM + "a = Pow(s, three) y = Sub(a, b)", None),
        (SUM + "a = Mul(s, s) y = Sub(b, a)", None),
        ("s = ReduceSum(x, d) a = Mul(s, s) m = Mul(x, x) b = ReduceSum(m, d) y = Sub(a, b)", None),
        ("z = Exp(x) s = ReduceSum(z, f) a = Mul(s, s) m = Mul(x, x) b = ReduceSum(m, f)"
         " y = Sub(a, b)", None),
        (SUM + "c = ReduceSum(x, d) a = Mul(s, c) y = Sub(a, b)", None),
    ],
)  # fmt: skip
def test_others_stay(body: str, reason: str | None) -> None:
    text = TEXT.replace("(float[] y)", "(float[] y, float[] q)") if "q = " in body else TEXT
    assert_unchanged(FuseBiInteraction(), text + body + " }", reason)


def test_other_dtypes_stay() -> None:
    text = (TEXT + SUM + "a = Mul(s, s) y = Sub(a, b) }").replace("float", "double")
    assert_unchanged(FuseBiInteraction(), text, "not float32")
