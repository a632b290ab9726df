"""Products along the rows of two computed operands, against ONNX Runtime; what else stays."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir.graph import Graph
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.legalize import legalize
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

TURNED = "t = Transpose<perm=[0,2,1]>(b) y = MatMul(a, t)"
HEADS = "t = Transpose<perm=[0,1,3,2]>(b) y = MatMul(a, t)"
HEAD = "t = Transpose<perm=[0,2,1]>(b) r = Unsqueeze(t, one) y = MatMul(a, r)"
GROUPS = "t = Transpose<perm=[0,2,1]>(b) r = Reshape(t, groups) y = MatMul(a, r)"
MIXED = "t = Transpose<perm=[0,2,1]>(b) r = Reshape(t, mixed) y = MatMul(a, r)"
SUM = "t = Mul(a, b) y = ReduceSum(t, last)"
LAST = "t = Mul(b, a) y = ReduceSum<keepdims=0>(t, last)"


def graph_of(a: str, b: str, body: str) -> Graph:
    return parse(
        f"""(float[{a}] a, float[{b}] b) => (float[] y) <
        int64[1] last = {{-1}}, int64[1] one = {{1}},
        int64[4] groups = {{2, 3, 16, 9}}, int64[3] mixed = {{-1, 8, 32}}> {{ {body} }}"""
    )


def is_legalized(graph: Graph) -> bool:
    copy = graph.clone()
    legalize(copy, lanes=8)
    return [node.op for node in copy.nodes] == [f"{DOMAIN}::RowProducts"]


@pytest.mark.parametrize(
    ("a", "b", "body"),
    [
        ("N,1,64", "N,100,64", TURNED),
        ("N,3,19", "N,9,19", TURNED),
        ("N,K,16", "N,33,16", TURNED),
        ("N,2,5,8", "N,2,8,8", HEADS),
        ("N,16,1", "N,50,16", "y = MatMul(b, a)"),
        ("N,2,70,1", "N,2,13,70", "y = MatMul(b, a)"),
        ("N,1,1,64", "N,50,64", HEAD),
        ("N,1,12", "N,10,12", SUM),
        ("N,1,31", "N,40,31", LAST),
    ],
)
def test_rows(a: str, b: str, body: str) -> None:
    graph = graph_of(a, b, body)
    assert is_legalized(graph)
    kernel = Compiled(graph)
    sizes = {"K": 4} if "K" in a else {}
    feeds = random_inputs(graph, {"N": 5, **sizes})
    whole = kernel(feeds)["y"]
    # Sums of up to 70 products of numbers near 1.
    np.testing.assert_allclose(whole, run_onnxruntime(graph, feeds)["y"], rtol=1e-5, atol=1e-5)
    for rows in (slice(0, 0), slice(2, 3)):
        part = kernel({name: array[rows] for name, array in feeds.items()})["y"]
        np.testing.assert_array_equal(part, whole[rows])  # whatever the batch is


def test_matrices_that_are_counted_by_other_axes() -> None:
    graph = graph_of("2,3,4,16", "6,9,16", GROUPS)
    assert is_legalized(graph)
    feeds = random_inputs(graph)
    found, wanted = Compiled(graph)(feeds)["y"], run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_nan_stays_in_its_row() -> None:
    graph = graph_of("N,1,20", "N,9,20", TURNED)
    feeds = random_inputs(graph, {"N": 2})
    feeds["b"][1, 8, 19] = np.nan
    found = np.isnan(Compiled(graph)(feeds)["y"])
    assert found[1, 0, 8] and found.sum() == 1


@pytest.mark.parametrize(
    ("a", "b", "body"),
    [
        ("N,1,64", "N,7,64", TURNED),  # few rows
        ("N,1,4", "N,70,4", TURNED),  # short rows
        ("N,1,8", "N,16,16", MIXED),  # other matrices
        ("N,1,64", "N,K,64", TURNED),  # rows of unknown number
        ("1,1,64", "N,16,64", TURNED),  # one matrix for all
        ("N,16,64", "N,64,16", "y = MatMul(a, b)"),
        ("N,16,16", "N,16,16", "t = Transpose<perm=[1,0,2]>(b) y = MatMul(a, t)"),
        ("N,16,16", "N,16,16", SUM),
        ("N,1,16", "N,16,16", "t = Mul(a, b) y = ReduceSum<keepdims=0>(t)"),
    ],
)
def test_others_stay(a: str, b: str, body: str) -> None:
    assert not is_legalized(graph_of(a, b, body))
