"""Products of computed matrices as they lie, against ONNX Runtime; what else stays."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir.graph import Graph
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.legalize import legalize
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime


def graph_of(a: str, b: str) -> Graph:
    return parse(f"(float[{a}] a, float[{b}] b) => (float[] y) {{ y = MatMul(a, b) }}")


def is_legalized(graph: Graph) -> bool:
    copy = graph.clone()
    legalize(copy, lanes=8)
    return [node.op for node in copy.nodes] == [f"{DOMAIN}::MatrixProducts"]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("N,1,20", "N,20,32"),  # one row, as gates are
        ("N,7,9", "N,9,70"),  # two blocks of 4 that overlap, tiles of columns that do
        ("N,K,5", "N,5,13"),  # rows of unknown number
        ("N,2,3,K", "N,2,K,8"),  # a sum of unknown length
        ("6,10", "N,10,24"),  # one matrix on the left
        ("N,3,10", "10,24"),  # one on the right
        ("N,1,1,3,10", "1,10,4"),
        ("N,10", "10,9"),
    ],
)
def test_matrices(a: str, b: str) -> None:
    graph = graph_of(a, b)
    assert is_legalized(graph)
    kernel = Compiled(graph)
    feeds = random_inputs(graph, {"N": 5} | ({"K": 8} if "K" in a + b else {}))
    whole = kernel(feeds)["y"]
    # Sums of up to 20 products of numbers near 1.
    np.testing.assert_allclose(whole, run_onnxruntime(graph, feeds)["y"], rtol=1e-5, atol=1e-5)
    for rows in (slice(0, 0), slice(2, 3)):
        given = {
            name: feeds[name][rows] if dims.startswith("N") else feeds[name]
            for name, dims in {"a": a, "b": b}.items()
        }
        np.testing.assert_array_equal(kernel(given)["y"], whole[rows])  # whatever the batch is


TURN = "t = Transpose<perm=[1,0]>(b)"
OURS = f"{DOMAIN}::MatrixProducts"


@pytest.mark.parametrize(
    ("a", "b", "body", "ops"),
    [
        ("N,20", "M,20", f"{TURN} y = MatMul(a, t)", [OURS]),  # two towers
        ("N,16", "16,M", "y = MatMul(a, b)", [OURS]),
        ("N,1,9", "N,M,9", "t = Transpose<perm=[0,2,1]>(b) y = MatMul(a, t)", [OURS]),
        ("N,2,7,3", "N,2,M,3", "t = Transpose<perm=[0,1,3,2]>(b) y = MatMul(a, t)", [OURS]),
        ("4,17", "N,17,M", "y = MatMul(a, b)", [OURS]),  # one matrix for all
        ("N,20", "50,20", f"{TURN} y = MatMul(a, t)", [OURS]),  # as many candidates for all
        ("N,2,3", "16,3", f"{TURN} y = MatMul(a, t)", [OURS]),
        ("N,20", "15,20", f"{TURN} y = MatMul(a, t)", ["Transpose", OURS]),
        ("N,3,5", "M,5", f"{TURN} y = MatMul(a, t)", [OURS]),
        ("N,20", "M,20", "y = Gemm<transB=1>(a, b)", [OURS]),
        ("20,N", "20,M", "y = Gemm<transA=1, alpha=0.5>(a, b)", ["Transpose", OURS, "Mul"]),
        ("N,4", "M,4", f"{TURN} y = Gemm<beta=2.0>(a, t, c)", [OURS, "Mul", "Add"]),
        ("2,M,7", "M,2,7", "t = Transpose<perm=[1,2,0]>(b) y = MatMul(a, t)", ["Transpose", OURS]),
    ],
)
def test_columns_of_unknown_number_or_turned(a: str, b: str, body: str, ops: list[str]) -> None:
    graph = parse(f"(float[{a}] a, float[{b}] b, float[N,1] c) => (float[] y) {{ {body} }}")
    copy = graph.clone()
    legalize(copy, lanes=8)
    assert [node.op for node in copy.nodes] == ops
    kernel = Compiled(graph)
    for columns in (0, 5, 70):
        feeds = random_inputs(graph, {"N": 8, "M": columns})
        whole = kernel(feeds)["y"]
        # Sums of up to 20 products of numbers near 1.
        np.testing.assert_allclose(whole, run_onnxruntime(graph, feeds)["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "ops"),
    [
        (
            "(float[5,N] a) => (float[] y) <float[5,8] w> { y = Gemm<transA=1>(a, w) }",
            ["Transpose"],
        ),
        (
            "(float[3,5] a) => (float[] y) <float[5,8] w, float[3,1] c> { y = Gemm(a, w, c) }",
            ["Add"],
        ),
    ],
)
def test_a_gemm_is_a_layer_beside_what_layers_do_not_do(text: str, ops: list[str]) -> None:
    graph = parse(text)
    copy = graph.clone()
    legalize(copy, lanes=8)
    assert sorted(node.op for node in copy.nodes) == sorted([f"{DOMAIN}::Dense", *ops])
    feeds = random_inputs(graph)
    expected = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_allclose(Compiled(graph)(feeds)["y"], expected, rtol=1e-5, atol=1e-5)


def test_float64() -> None:
    graph = parse("(double[N,5] a, double[M,5] b) => (double[] y) { y = Gemm<transB=1>(a, b) }")
    copy = graph.clone()
    legalize(copy, lanes=8)
    assert [node.op for node in copy.nodes] == [OURS]
    feeds = random_inputs(graph, {"N": 7, "M": 21})
    expected = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_allclose(Compiled(graph)(feeds)["y"], expected, rtol=1e-13, atol=1e-13)


def test_integers_stay() -> None:
    graph = parse("(int32[N,5] a, int32[M,5] b) => (int32[] y) { y = Gemm<transB=1>(a, b) }")
    legalize(graph, lanes=8)
    assert [node.op for node in graph.nodes] == ["Gemm"]


def test_a_constant_on_the_left() -> None:
    graph = parse("(float[N,10,16] b) => (float[] y) <float[3,10] a> { y = MatMul(a, b) }")
    assert is_legalized(graph)
    feeds = random_inputs(graph, {"N": 4})
    expected = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_allclose(Compiled(graph)(feeds)["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("a", "w"),
    [
        ("4,N,10", "4,10,16"),  # weights for each expert or field
        ("N,10", "4,10,16"),  # rows that all experts read
        ("N,1,3,10", "2,10,9"),
    ],
)
def test_weights_of_several_layers(a: str, w: str) -> None:
    graph = parse(f"(float[{a}] a) => (float[] y) <float[{w}] w> {{ y = MatMul(a, w) }}")
    feeds = random_inputs(graph, {"N": 7})
    expected = run_onnxruntime(graph, feeds)["y"]
    assert is_legalized(graph) == (a != "N,1,3,10")
    np.testing.assert_allclose(Compiled(graph)(feeds)["y"], expected, rtol=1e-5, atol=1e-5)


def test_one_matrix_of_weights_is_a_dense_layer() -> None:
    graph = parse("(float[N,3,10] a) => (float[] y) <float[10,16] w> { y = MatMul(a, w) }")
    legalize(graph, lanes=8)
    assert [node.op for node in graph.nodes] == [f"{DOMAIN}::Dense"]


def test_nan_stays_in_its_row() -> None:
    graph = graph_of("N,7,3", "N,3,9")
    feeds = random_inputs(graph, {"N": 2})
    feeds["a"][1, 6, 2] = np.nan
    found = np.isnan(Compiled(graph)(feeds)["y"])
    assert found[1, 6].all() and found.sum() == 9


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("N,5,8", "N,8,3"),  # few columns
        ("N,5,K", "N,K,M"),  # neither columns nor sums of known size
        ("N,1,5,8", "N,4,8,16"),  # four matrices for each
        ("N,0,8", "N,8,16"),
        ("N,5,0", "N,0,16"),
        ("8", "N,8,16"),
    ],
)
def test_others_stay(a: str, b: str) -> None:
    assert not is_legalized(graph_of(a, b))
