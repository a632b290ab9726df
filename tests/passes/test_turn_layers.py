"""Weights come last in layers; what follows turns results back."""

from __future__ import annotations

import pytest

from graphopt.passes.turn_layers import TurnLayers
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,4] x, float[4,N] turned, float[8,4] v) => (float[] y)
    <float[8,4] w, float[4,8] first, float[8] b, float[8,1] column, float[1] one, float[3,4] z> {
        BODY
    }"""
T = "Transpose<perm=[1, 0]>"


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("y = Gemm<transB=1>(w, x)", f"h = Gemm<transA=0, transB=1>(x, w) y = {T}(h)"),
        (
            "y = Gemm<transA=1, transB=1, alpha=0.5>(first, x)",
            f"h = Gemm<transA=0, transB=0, alpha=0.5>(x, first) y = {T}(h)",
        ),
        (
            "y = Gemm<transB=1, beta=2.0>(w, x, column)",
            f"h = Gemm<transA=0, transB=1, beta=2.0>(x, w, b) y = {T}(h)",
        ),
        (
            "y = Gemm<transB=1>(w, x, one)",
            f"h = Gemm<transA=0, transB=1>(x, w, one) y = {T}(h)",
        ),
        (f"t = {T}(x) y = MatMul(w, t)", f"h = Gemm<transB=1>(x, w) y = {T}(h)"),
    ],
)
def test_weights_that_come_first(body: str, after: str) -> None:
    assert_rewrites(TurnLayers(), TEXT.replace("BODY", body), TEXT.replace("BODY", after))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Gemm(w, turned)", "columns"),
        ("y = MatMul(w, turned)", None),
        ("y = Gemm<transB=1>(x, w)", None),
        ("y = Gemm<transB=1>(v, x)", None),
        ("r = ReduceSum<keepdims=0>(turned) y = Gemm<transB=1>(w, x, r)", "one number"),
    ],
)
def test_others_stay(body: str, reason: str | None) -> None:
    assert_unchanged(TurnLayers(), TEXT.replace("BODY", body), reason)
