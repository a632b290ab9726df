"""Layers in float64 on the packed GEMM, to the precision of float64; what else stays."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir.graph import Graph
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.legalize import legalize
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

MATMUL = "(double[N,{k}] x) => (double[] y) <double[{k},{n}] w> {{ y = MatMul(x, w) }}"
GEMM = (
    "(double[N,{k}] x) => (double[] y) <double[{n},{k}] w, double[{n}] b> "
    "{{ y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b) }}"
)


def ops_of(graph: Graph) -> list[str]:
    copy = graph.clone()
    legalize(copy, lanes=8)
    return [node.op for node in copy.nodes]


@pytest.mark.parametrize("text", [MATMUL, GEMM])
@pytest.mark.parametrize(
    ("k", "n"),
    [(5, 1), (17, 3), (40, 16), (300, 33)],  # less than a vector, panels with and without padding
)
def test_layers(text: str, k: int, n: int) -> None:
    graph = parse(text.format(k=k, n=n))
    assert ops_of(graph) == [f"{DOMAIN}::DoubleDense"]
    kernel = Compiled(graph)
    feeds = random_inputs(graph, {"N": 13})
    whole = kernel(feeds)["y"]
    # Sums of 300 products at most, each off by 1e-16: float32 would be off by 1e-7.
    np.testing.assert_allclose(whole, run_onnxruntime(graph, feeds)["y"], rtol=1e-11, atol=1e-12)
    for rows in (slice(0, 0), slice(4, 5), slice(3, 10)):
        some = kernel({"x": feeds["x"][rows]})["y"]
        np.testing.assert_array_equal(some, whole[rows])  # whatever the batch is


def test_rows_of_several_axes() -> None:
    graph = parse("(double[N,3,10] x) => (double[] y) <double[10,16] w> { y = MatMul(x, w) }")
    assert ops_of(graph) == [f"{DOMAIN}::DoubleDense"]
    feeds = random_inputs(graph, {"N": 4})
    expected = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_allclose(Compiled(graph)(feeds)["y"], expected, rtol=1e-12)


@pytest.mark.parametrize(("a", "b"), [("N,7,9", "N,9,30"), ("N,1,20", "N,20,5"), ("6,4", "N,4,8")])
def test_computed_matrices(a: str, b: str) -> None:
    graph = parse(f"(double[{a}] a, double[{b}] b) => (double[] y) {{ y = MatMul(a, b) }}")
    assert ops_of(graph) == [f"{DOMAIN}::MatrixProducts"]
    feeds = random_inputs(graph, {"N": 3})
    expected = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_allclose(Compiled(graph)(feeds)["y"], expected, rtol=1e-12, atol=1e-13)


def test_nan_stays_in_its_row() -> None:
    graph = parse(MATMUL.format(k=9, n=5))
    feeds = random_inputs(graph, {"N": 8})
    feeds["x"][6, 2] = np.nan
    found = np.isnan(Compiled(graph)(feeds)["y"])
    assert found[6].all() and found.sum() == 5


@pytest.mark.parametrize(
    "text",
    [
        "(double[4,5] x) => (double[] y) <double[5] w> { y = MatMul(x, w) }",  # a vector
        "(double[5,N] x) => (double[] y) <double[4,5] w> { y = MatMul(w, x) }",  # on the left
    ],
)
def test_others_stay(text: str) -> None:
    assert f"{DOMAIN}::DoubleDense" not in ops_of(parse(text))
