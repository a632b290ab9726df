"""A reshape that puts reduced axes back goes; others stay."""

from __future__ import annotations

import pytest

from graphopt.passes.keep_reduced_axes import KeepReducedAxes
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,3,4] x) => (float[] y)
    <int64[1] last = {2}, int64[2] both = {1, 2}, int64[3] rows = {-1, 3, 1},
     int64[3] ones = {-1, 1, 1},
     int64[3] front = {-1, 1, 3}, int64[2] flat = {-1, 3}> { BODY }"""


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (
            "m = ReduceSum<keepdims=0>(x, last) y = Reshape(m, rows)",
            "y = ReduceSum<keepdims=1>(x, last)",
        ),
        (
            "m = ReduceMax<keepdims=0>(x, both) y = Reshape(m, ones)",
            "y = ReduceMax<keepdims=1>(x, both)",
        ),
    ],
)
def test_it_goes(body: str, after: str) -> None:
    assert_rewrites(KeepReducedAxes(), TEXT.replace("BODY", body), TEXT.replace("BODY", after))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("m = ReduceSum<keepdims=0>(x, last) y = Reshape(m, front)", "something else"),
        ("m = ReduceSum<keepdims=1>(x, last) y = Reshape(m, flat)", "already"),
        (
            "m = ReduceSum<keepdims=0>(x, last) y = Reshape(m, rows) z = Relu(m)",
            "read elsewhere",
        ),
    ],
)
def test_others_stay(body: str, reason: str) -> None:
    text = TEXT.replace("BODY", body)
    if "z = " in body:
        text = text.replace("(float[] y)", "(float[] y, float[] z)")
    assert_unchanged(KeepReducedAxes(), text, reason)
