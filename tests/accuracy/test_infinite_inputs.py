"""Layers that meet infinities inside, on data that the model answers with numbers all the same."""

from __future__ import annotations

import numpy as np

import graphopt
from graphopt.accuracy.datasets import in_batches
from graphopt.testing import parse

# Exp overflows for large inputs; the sigmoid of the last layer's outputs is a number again.
MODEL = """(float[N,64] x) => (float[N] y)
<float[64,64] w, float[64,64] v, float[64] b, float[64] u, float hundred = {100}> {
    big = Mul(x, hundred)
    e = Exp(big)
    f = Gemm(e, w, b)
    g = Relu(f)
    h = Gemm(g, v, b)
    s = Sigmoid(h)
    y = MatMul(s, u)
}"""


def test_what_cannot_be_fitted_is_not_proposed() -> None:
    graph = parse(MODEL)
    for value in graph.constants():
        if value.shape == (64, 64):
            assert value.const is not None
            value.const = np.abs(value.const)  # no difference of infinities
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 64)).astype(np.float32)
    data = in_batches({"x": rows})
    found = graphopt.optimize(graph, budget=graphopt.Budget(data, 1.0, "max-error"))
    ops = [node.op for node in found.nodes]
    assert ops.count("Gemm") + ops.count("MatMul") + sum("Dense" in op for op in ops) >= 3
