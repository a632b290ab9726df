"""Columns that are the same in all rows are multiplied once."""

from __future__ import annotations

import pytest

from graphopt.passes.hoist_repeated_columns import HoistRepeatedColumns
from graphopt.testing import assert_rewrites, assert_unchanged

ONE = "int64[2] one = {5, 1}"
EXPANDED = "e = Expand(u, one)"
LAYER = "y = Gemm<{}>(v, w, b)"
GIVEN = "float[1,40] u, float[5,8] i, float[5,3] j"


def text(body: str, weights: str, given: str = GIVEN) -> str:
    return f"({given}) => (float[] y) <{weights}> {{ {body} }}"


def test_gemm_of_transposed_weights() -> None:
    body = "e = Expand(u, one) v = Concat<axis=-1>(i, e, j) " + LAYER.format("transB=1")
    before = text(body, f"{ONE}, float[32,51] w, float[32] b")
    after = text(
        "r = Concat<axis=1>(i, j) s = Gemm(u, w1, b) y = Gemm(r, w2, s)",
        "float[40,32] w1, float[11,32] w2, float[32] b",
    )
    assert_rewrites(HoistRepeatedColumns(), before, after)


def test_matmul_over_more_axes() -> None:
    given = "float[1,1,40] u, float[5,2,8] i"
    body = "e = Expand(u, s) v = Concat<axis=2>(e, i) y = MatMul(v, w)"
    before = text(body, "int64[3] s = {5, 2, 1}, float[48,32] w", given)
    after = text(
        "p = MatMul(i, w2) q = MatMul(u, w1) y = Add(p, q)",
        "float[40,32] w1, float[8,32] w2",
        given,
    )
    assert_rewrites(HoistRepeatedColumns(), before, after)


def test_scales_stay() -> None:
    body = "e = Expand(u, one) v = Concat<axis=1>(e, i) " + LAYER.format("alpha=2.0, beta=0.5")
    before = text(body, f"{ONE}, float[48,32] w, float[32] b")
    after = text(
        "s = Gemm<alpha=2.0, beta=0.5>(u, w1, b) y = Gemm<alpha=2.0>(i, w2, s)",
        "float[40,32] w1, float[8,32] w2, float[32] b",
    )
    assert_rewrites(HoistRepeatedColumns(), before, after)


def test_several_layers_and_other_readers() -> None:
    body = """e = Expand(u, one) v = Concat<axis=1>(e, i) g = Gemm(v, w, b) h = MatMul(v, z)
        m = ReduceSum(v) n = Add(g, h) y = Add(n, m)"""
    before = text(body, f"{ONE}, float[48,32] w, float[32] b, float[48,32] z")
    after = """e = Expand(u, one) v = Concat<axis=1>(e, i)
        s = Gemm(u, w1, b) g = Gemm(i, w2, s) p = MatMul(i, z2) q = MatMul(u, z1)
        h = Add(p, q) m = ReduceSum(v) n = Add(g, h) y = Add(n, m)"""
    weights = ", ".join(f"float[40,32] {k}1, float[8,32] {k}2" for k in "wz")
    after = text(after, f"{ONE}, {weights}, float[32] b")
    assert_rewrites(HoistRepeatedColumns(), before, after)


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("v = Concat<axis=1>(i, j) y = Gemm(v, w)", "float[11,99] w", "no operand repeats"),
        (f"{EXPANDED} v = Concat<axis=1>(e, e) y = Gemm(v, w)", "float[80,32] w", "all operands"),
        (f"{EXPANDED} v = Concat<axis=1>(e, i) y = Gemm(v, w)", "float[48,3] w", "save less than"),
        (
            f"{EXPANDED} v = Concat<axis=1>(e, i) y = Gemm(v, w, j)",
            "float[48,3] w",
            "bias is not a constant",
        ),
        (
            "t = Transpose(i) s = Transpose(u) e = Expand(s, c) v = Concat<axis=0>(t, e) "
            "y = MatMul(v, w)",
            "float[5,99] w, int64[2] c = {40, 5}",
            "does not join columns",
        ),
    ],
)
def test_refusals(body: str, weights: str, reason: str) -> None:
    assert_unchanged(HoistRepeatedColumns(), text(body, f"{ONE}, {weights}"), reason)


def test_rows_that_differ_are_no_repetition() -> None:
    given = "float[5,1,40] u, float[5,2,8] i"
    body = "e = Expand(u, s) v = Concat<axis=2>(e, i) y = MatMul(v, w)"
    weights = "int64[3] s = {1, 2, 1}, float[48,32] w"
    assert_unchanged(HoistRepeatedColumns(), text(body, weights, given), "no operand repeats")
