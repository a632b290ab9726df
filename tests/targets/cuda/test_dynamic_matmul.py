"""Rows that are rounded in ranges of their own multiply floats on a GPU: the same numbers."""

from __future__ import annotations

import numpy as np

from graphopt.testing import parse, run_onnxruntime

from .conftest import Runner

TEXT = """(float[N,64] x, float[N,3,64] z) => (float[N,70] y, float[N,3,70] v)
<int8[64,70] c, float[70] s, float[70] b> {
    m = graphopt.DynamicMatMul<levels=127>(x, c, s)
    a = Add(m, b)
    y = Relu(a)
    v = graphopt.DynamicMatMul(z, c, s)
}"""


def test_the_numbers_of_the_portable_model(run_model: Runner) -> None:
    graph, rng = parse(TEXT), np.random.default_rng(0)
    feeds = []
    for rows in (1, 7, 64):
        x = rng.normal(size=(rows, 64)) * 10.0 ** rng.integers(-3, 4, (rows, 1))
        x[rows // 2 :: 5] = 0
        z = rng.normal(size=(rows, 3, 64))
        feeds.append({"x": x.astype(np.float32), "z": z.astype(np.float32)})
    feeds[1]["x"][1, 3], feeds[1]["x"][2, 63] = np.nan, np.inf
    for found, feed in zip(run_model(graph, *feeds), feeds):
        for name, wanted in run_onnxruntime(graph, feed).items():
            # Sums of 64 products, in float32 here.
            size = np.nanmax(np.where(np.isfinite(feed["x"]), np.abs(feed["x"]), 0)) * 64
            np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-6 * size)
