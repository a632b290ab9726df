"""Rows are multiplied before they are repeated, not after."""

from __future__ import annotations

import pytest

from graphopt.passes.sink_gathers import SinkGathers
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """(float[N,3,4] x, float[3,N,4] t) => (float[] y) <float[4,6] w, float[5,6] tall,
    float[3,4,6] stack, int64[5] i = {0, 0, 1, 1, -1}, int64[3] few = {2, 0, 1}, int64 one = {1},
    int64[5] columns = {0, 1, 2, 3, 3}, int64[2,3] grid = {0, 0, 1, 1, 2, 2}> { """


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (
            "g = Gather<axis=1>(x, i) y = MatMul(g, w)",
            "m = MatMul(x, w) y = Gather<axis=1>(m, i)",
        ),
        (
            "g = Gather<axis=-2>(x, i) y = MatMul(g, w)",
            "m = MatMul(x, w) y = Gather<axis=1>(m, i)",
        ),
        ("g = Gather(t, i) y = MatMul(g, w)", "m = MatMul(t, w) y = Gather<axis=0>(m, i)"),
    ],
)
def test_layers_come_first(body: str, after: str) -> None:
    assert_rewrites(SinkGathers(), f"{TEXT}{body} }}", f"{TEXT}{after} }}")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("g = Gather<axis=1>(x, few) y = MatMul(g, w)", "no more rows"),
        ("g = Gather<axis=0>(x, i) y = MatMul(g, w)", "no more rows"),
        ("g = Gather<axis=2>(x, columns) y = MatMul(g, tall)", "chooses columns"),
        ("g = Gather<axis=1>(x, one) y = MatMul(g, w)", "not multiply chosen rows"),
        ("g = Gather<axis=1>(x, grid) y = MatMul(g, w)", "not multiply chosen rows"),
        ("g = Gather<axis=1>(x, i) y = MatMul(g, w) z = Exp(g)", "also read elsewhere"),
    ],
)
def test_others_stay(body: str, reason: str) -> None:
    text = TEXT.replace("(float[] y)", "(float[] y, float[] z)") if "z = " in body else TEXT
    assert_unchanged(SinkGathers(), text + body + " }", reason)
