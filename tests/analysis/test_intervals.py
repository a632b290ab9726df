"""Bounds of columns hold for whatever the inputs are, and are tight where they can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from graphopt.analysis.intervals import Intervals
from graphopt.ir.graph import Graph, Value
from graphopt.ir.types import TensorType, is_float
from graphopt.testing import graphs, parse, random_inputs, run_onnxruntime


def bounds(text: str) -> tuple[np.ndarray, np.ndarray]:
    return Intervals().of(parse(text).outputs[0])


TABLE = "float[3,2] t = {1, -2, 3, 0, -5, 4}"  # columns [-5, 3] and [-2, 4]


@pytest.mark.parametrize(
    ("body", "low", "high"),
    [
        ("y = Gather<axis=0>(t, i)", [-5, -2], [3, 4]),
        ("e = Gather<axis=0>(t, i)  y = Relu(e)", [0, 0], [3, 4]),
        ("e = Gather<axis=0>(t, i)  y = LeakyRelu<alpha=0.5>(e)", [-2.5, -1], [3, 4]),
        ("e = Gather<axis=0>(t, i)  y = Tanh(e)", [-1, -1], [1, 1]),
        ("e = Gather<axis=0>(t, i)  y = Sub(e, e)", [-8, -6], [8, 6]),
        ("e = Gather<axis=0>(t, i)  y = Mul(e, e)", [-15, -8], [25, 16]),
        ("e = Gather<axis=0>(t, i)  y = Concat<axis=0>(e, x)", [-np.inf] * 2, [np.inf] * 2),
        ("y = Mul(x, zero)", [0, 0], [0, 0]),
        ("y = Exp(x)", [-np.inf] * 2, [np.inf] * 2),
    ],
)
def test_bounds_of_columns(body: str, low: list[float], high: list[float]) -> None:
    text = f"(int64[N] i, float[N,2] x) => (float[M,2] y) <{TABLE}, float[2] zero = {{0, 0}}> {{"
    found = bounds(f"{text} {body} }}")
    np.testing.assert_allclose(found[0], low, rtol=1e-6)
    np.testing.assert_allclose(found[1], high, rtol=1e-6)


def test_a_layer() -> None:
    low, high = bounds(
        f"""(int64[N] i) => (float[N,3] y)
        <{TABLE}, float[2,3] w = {{1, -1, 0, 2, 0, 0}}, float[3] b = {{1, 1, 7}}> {{
            e = Gather<axis=0>(t, i)
            y = Gemm(e, w, b)
        }}"""
    )
    np.testing.assert_allclose(low, [-8, -2, 7], atol=1e-4)  # e0 + 2 e1 + 1, 1 - e0, 7
    np.testing.assert_allclose(high, [12, 6, 7], atol=1e-4)
    assert low[0] < -8 and high[0] > 12  # rounding is allowed for
    assert low[2] == high[2] == 7


def test_columns_that_are_joined_and_flattened() -> None:
    low, high = bounds(
        f"""(int64[N,2] i) => (float[N,6] y) <{TABLE}, int64[2] s = {{-1, 4}}> {{
            e = Gather<axis=0>(t, i)
            f = Reshape(e, s)
            g = Sigmoid(f)
            h = Slice(f, a, b, axis)
            y = Concat<axis=1>(f, h)
        }}""".replace(
            "int64[2] s", "int64[1] a = {0}, int64[1] b = {2}, int64[1] axis = {1}, int64[2] s"
        )
    )
    np.testing.assert_array_equal(low, [-5, -2, -5, -2, -5, -5])
    np.testing.assert_array_equal(high, [3, 4, 3, 4, 4, 4])


def observed(graph: Graph) -> list[tuple[Value, np.ndarray]]:
    values = [
        v
        for node in graph.nodes
        for v in node.outputs
        if isinstance(v.type, TensorType) and is_float(v.dtype) and v.rank
    ]
    copies: dict[Value, Value] = {}
    copy = graph.clone(copies)
    copy.set_outputs([copies[v] for v in values], [f"o{k}" for k in range(len(values))])
    return list(zip(values, run_onnxruntime(copy, random_inputs(graph)).values()))


@settings(max_examples=15)
@given(graphs())
def test_no_value_leaves_its_bounds(graph: Graph) -> None:
    intervals = Intervals()
    for value, array in observed(graph):
        low, high = intervals.of(value)
        assert (array >= low - 1e-6).all() and (array <= high + 1e-6).all(), value


def test_parts_of_unknown_rank_have_bounds_together() -> None:
    graph = parse(
        """(float[] x, float[N,3] z) => (float[] y) {
            a = Sigmoid(x) b = Tanh(z) c = Concat<axis=1>(a, b) y = Relu(c) }"""
    )
    low, high = Intervals().of(graph.outputs[0])
    assert (low, high) == (0, 1)
