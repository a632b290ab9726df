"""Inner products of pairs, however the features of the pairs are brought together."""

from __future__ import annotations

import pytest

from graphopt.passes.fuse_inner_products import FuseInnerProducts
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,3,4] x, float[N,1,4] a, float[N,1,4] b, float[N,1,4] c) => (float[] y) <
    int64[3] i = {0, 0, 1}, int64[3] j = {1, -1, 2}, int64[3] far = {1, 2, 3}, int64[1] d = {2},
    int64[1] f = {1}, int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2},
    int64[3] tall = {-1, 3, 1}> { """
GATHERS = "p = Gather<axis=1>(x, i) q = Gather<axis=1>(x, j) m = Mul(p, q) "
DOTS = "graphopt.DotInteraction<pairs=[1, 2, 5]>"


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (GATHERS + "s = ReduceSum<keepdims=0>(m, d)", f"s = {DOTS}(x)"),
        (GATHERS + "s = ReduceSum(m, d)", f"t = {DOTS}(x) s = Reshape(t, tall)"),
        (
            "p = Concat<axis=1>(a, a, b) q = Concat<axis=1>(b, c, c) m = Mul(p, q)"
            " s = ReduceSum<keepdims=0>(m, d)",
            f"x1 = Concat<axis=1>(a, b, c) s = {DOTS}(x1)",
        ),
        (
            "u = Slice(x, zero, one, one) v = Slice(x, one, two, one) w = Gather<axis=1>(x, two)"
            " p = Concat<axis=1>(u, u, v) q = Concat<axis=1>(v, w, w) m = Mul(p, q)"
            " s = ReduceSum<keepdims=0>(m, d)",
            f"s = {DOTS}(x)",
        ),
    ],
)  # fmt: skip
def test_forms(body: str, after: str) -> None:
    assert_rewrites(
        FuseInnerProducts(), f"{TEXT}{body} y = Neg(s) }}", f"{TEXT}{after} y = Neg(s) }}"
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("m = Mul(a, b) y = ReduceSum<keepdims=0>(m, d)", "few of the possible pairs"),
        ("m = Mul(x, x) y = ReduceSum<keepdims=0>(m, d)", "few of the possible pairs"),
        (GATHERS + "y = ReduceSum<keepdims=0>(m, f)", "over the last axis"),
        (GATHERS + "y = ReduceSum<keepdims=0>(m, d) z = Exp(m)", "also read elsewhere"),
        ("m = Mul(x, a) y = ReduceSum<keepdims=0>(m, d)", None),
    ],
)
def test_others_stay(body: str, reason: str | None) -> None:
    text = TEXT.replace("(float[] y)", "(float[] y, float[] z)") if "z = " in body else TEXT
    assert_unchanged(FuseInnerProducts(), text + body + " }", reason)


def test_positions_outside_are_left_for_the_model_to_fail_on() -> None:
    text = TEXT + "p = Gather<axis=1>(x, far) q = Gather<axis=1>(x, j) m = Mul(p, q) "
    assert_unchanged(FuseInnerProducts(), text + "y = ReduceSum<keepdims=0>(m, d) }", "few")


def test_other_dtypes_stay() -> None:
    text = (TEXT + GATHERS + "y = ReduceSum<keepdims=0>(m, d) }").replace("float", "double")
    assert_unchanged(FuseInnerProducts(), text, "float32")
