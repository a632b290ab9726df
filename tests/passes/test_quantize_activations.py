"""Inputs of layers in 8 bits: of which layers, in which range."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime
import pytest

import graphopt
from graphopt.accuracy.budget import Budget
from graphopt.accuracy.datasets import in_batches
from graphopt.ir.graph import Graph, Value
from graphopt.ir.onnx_io import to_proto
from graphopt.passes.quantize_activations import QuantizeActivations
from graphopt.pipeline.base import PassContext
from graphopt.testing import (
    Lavish,
    assert_rewrites,
    assert_unchanged,
    parse,
    run_compiled,
    run_onnxruntime,
)

LAYERS = """(float[N,32] x) => (float[N,8] y) <float[32,64] w, float[64,8] v, float[64] b> {
    a = Gemm(x, w, b)
    r = Relu(a)
    y = MatMul(r, v)
}"""
PASSES = "quantize-weights,quantize-activations"


def test_attributes_and_bias_stay() -> None:
    assert_rewrites(
        QuantizeActivations(),
        """(float[N,32] x) => (float[N,16] y) <int8[16,32] c, float[16] s, float[16] b> {
            w = graphopt.StoredWeights<bits=8, axis=0>(c, s)
            y = Gemm<transB=1, beta=2.0>(x, w, b)
        }""",
        """(float[N,32] x) => (float[N,16] y)
        <int8[16,32] c, float[16] s, float[16] b,
         float scale = {0.016970288008451462}, uint8 zero = {137}> {
            w = DequantizeLinear<axis=0>(c, s)
            q = QuantizeLinear(x, scale, zero)
            d = DequantizeLinear(q, scale, zero)
            y = Gemm<transB=1, beta=2.0>(d, w, b)
        }""",
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(float[N,8] x) => (float[N,8] y) <float[8,8] w> { y = MatMul(x, w) }", None),
        (
            """(float[32,N] x) => (float[N,16] y) <int8[32,16] c, float[16] s> {
                w = DequantizeLinear<axis=1>(c, s)
                y = Gemm<transA=1>(x, w)
            }""",
            "transposed",
        ),
    ],
)
def test_left_alone(text: str, reason: str | None) -> None:
    assert_unchanged(QuantizeActivations(), text, reason)


class Seen(Lavish):
    """A budget whose calibration data are given."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def observe(self, graph: Graph, values: Sequence[Value]) -> list[list[np.ndarray]]:
        return [[self.rows] for _ in values]


def test_what_a_layer_loses_in_the_mean_goes_into_its_bias() -> None:
    text = """(float[N,32] x) => (float[N,64] y) <int8[64,32] c, float[64] s, float[64] b> {
        w = DequantizeLinear<axis=0>(c, s)
        y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b)
    }"""
    # Everything above a percentile is clipped, so that the inputs get smaller in the mean.
    rows = np.random.default_rng(1).lognormal(sigma=1.5, size=(4000, 32)).astype(np.float32)
    graph, copies = parse(text), dict[Value, Value]()
    wanted = run_onnxruntime(graph, {"x": rows})["y"]
    copy = graph.clone(copies)
    *_, clipping = QuantizeActivations().propose(graph, PassContext(budget=Seen(rows)))
    clipping.apply(copy, copies)
    lost = [(run_onnxruntime(copy, {"x": rows})["y"] - wanted).mean(axis=0)]
    layer = next(node for node in copy.nodes if node.op == "Gemm")
    copy.set_input(layer, 2, copies[next(v for v in graph.constants() if v.name == "b")])
    lost.append((run_onnxruntime(copy, {"x": rows})["y"] - wanted).mean(axis=0))
    after, before = (np.abs(mean).max() for mean in lost)
    assert after < 0.01 * before


def test_scores_do_not_depend_on_the_batch() -> None:
    rows = np.random.default_rng(1).normal(size=(800, 32)).astype(np.float32)
    budget = Budget(in_batches({"x": rows}), 0.2)
    found = graphopt.optimize(parse(LAYERS), passes=PASSES, budget=budget)
    assert sum(node.op == "QuantizeLinear" for node in found.nodes) == 2
    run = onnxruntime.InferenceSession(to_proto(found).SerializeToString()).run
    together = run(None, {"x": rows[:16]})[0]
    for k in range(16):
        np.testing.assert_array_equal(run(None, {"x": rows[k : k + 1]})[0][0], together[k])


def test_compiled_it_gives_what_the_portable_model_gives() -> None:
    rows = np.random.default_rng(1).normal(size=(800, 32)).astype(np.float32)
    budget = Budget(in_batches({"x": rows}), 0.2)
    found = graphopt.optimize(parse(LAYERS), passes=PASSES, budget=budget)
    feeds = {"x": rows[:64]}
    compiled, portable = run_compiled(found, feeds)["y"], run_onnxruntime(found, feeds)["y"]
    # Sums in another order may round an input of the second layer to the code next to it.
    assert np.abs(compiled - portable).max() < 0.01 * np.abs(portable).max()


def test_a_budget_that_is_too_small_keeps_floats() -> None:
    rows = np.random.default_rng(1).normal(size=(800, 32)).astype(np.float32)
    budget = Budget(in_batches({"x": rows}), 0.02)
    found = graphopt.optimize(parse(LAYERS), passes=PASSES, budget=budget)
    assert sum(node.op == "QuantizeLinear" for node in found.nodes) < 2


WIDE = """(float[N,64] x) => (float[N,70] y) <int8[70,64] c, float[70] s, float[1,70] b> {
    w = graphopt.StoredWeights<bits=8, axis=0>(c, s)
    a = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b)
    y = Relu(a)
}"""
BY_ROW = QuantizeActivations(ranges="dynamic")


def test_rows_with_a_range_each() -> None:
    graph, copies = parse(WIDE), dict[Value, Value]()
    rows = np.random.default_rng(1).normal(size=(50, 64)).astype(np.float32)
    rows *= np.float32(10) ** np.arange(-5, 5, dtype=np.float32).repeat(5)[:, None]
    wanted = run_onnxruntime(graph, {"x": rows})["y"]
    copy = graph.clone(copies)
    (proposal,) = BY_ROW.propose(graph, PassContext(budget=Seen(rows)))
    assert (proposal.what, proposal.saves, proposal.for_speed) == ("int8 by row", 70 * 64, True)
    proposal.apply(copy, copies)
    assert [node.op for node in copy.nodes] == ["graphopt::DynamicMatMul", "Add", "Relu"]
    found = run_onnxruntime(copy, {"x": rows})["y"]
    # Half a step of 256, in each of 64 elements, and weights all of one sign.
    size = np.abs(rows).max(axis=1, keepdims=True) * 64 * np.abs(wanted).max() / np.abs(rows).max()
    assert (np.abs(found - wanted) <= size / 256).all()


@pytest.mark.parametrize("levels", [255, 127])
def test_the_expected_error_is_in_proportion_to_steps(levels: int) -> None:
    rows = np.random.default_rng(1).normal(size=(50, 64)).astype(np.float32)
    budget = Seen(rows)
    budget.row_levels = levels
    (proposal,) = BY_ROW.propose(parse(WIDE), PassContext(budget=budget))
    assert 0.001 < proposal.expected_error * levels / 255 < 0.01


def test_the_range_of_rows_comes_after_fixed_ones() -> None:
    rows = np.random.default_rng(1).normal(size=(50, 64)).astype(np.float32)
    offered = [p.what for p in QuantizeActivations().propose(parse(WIDE), context(rows))]
    assert set(offered[:-1]) == {"int8"}
    assert offered[-1] == "int8 by row"
    static = QuantizeActivations(ranges="static").propose(parse(WIDE), context(rows))
    assert {p.what for p in static} == {"int8"}


def context(rows: np.ndarray) -> PassContext:
    return PassContext(budget=Seen(rows))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (WIDE.replace("70", "63"), "narrow"),
        (WIDE.replace("float[N,64] x)", "float[N,64] x, float[N,70] b)").replace(
            ", float[1,70] b", ""), "its bias is computed"),
        (WIDE.replace("graphopt.StoredWeights<bits=8, axis=0>(c, s)",
                      "DequantizeLinear<axis=1>(c, t)").replace(
            "float[70] s", "float[64] t"), "no scale per output"),
        (WIDE.replace("graphopt.StoredWeights<bits=8, axis=0>(c, s)",
                      "DequantizeLinear<axis=0>(c, s, z)").replace(
            "float[70] s", "float[70] s, int8[70] z"), "have a zero point"),
        (WIDE.replace("graphopt.StoredWeights<bits=8, axis=0>(c, s)",
                      "DequantizeLinear<axis=0>(c, s)").replace(
            "int8[70,64] c", "uint8[70,64] c"), "signed bytes"),
    ],
)  # fmt: skip
def test_rows_left_alone(text: str, reason: str) -> None:
    assert_unchanged(BY_ROW, text, reason)


def test_targets_without_such_products_are_not_offered_them() -> None:
    rows = np.zeros((2, 64), np.float32)
    budget = Seen(rows)
    budget.row_levels = 0
    assert not list(BY_ROW.propose(parse(WIDE), PassContext(budget=budget)))


# Rows of very different sizes: in one range, small ones are all zero.
def test_what_no_fixed_range_suits_has_a_range_for_each_row() -> None:
    text = """(float[N,64] x) => (float[N,70] y) <float[64,70] w> {
        m = MatMul(x, w)
        a = Abs(m)
        last = Constant<value_ints = [1]>()
        t = ReduceMax(a, last)
        y = Div(m, t)
    }"""
    rows = np.random.default_rng(1).normal(size=(800, 64)).astype(np.float32)
    rows *= np.float32(10) ** np.random.default_rng(2).integers(-3, 4, (800, 1))
    budget, target = Budget(in_batches({"x": rows}), 0.05), "cpu:icelake-server"
    found = graphopt.optimize(parse(text), passes=PASSES, budget=budget, target=target)
    assert "graphopt::DynamicMatMul" in {node.op for node in found.nodes}
    static = PASSES + "{ranges=static}"
    found = graphopt.optimize(parse(text), passes=static, budget=budget, target=target)
    assert not {"graphopt::DynamicMatMul", "QuantizeLinear"} & {node.op for node in found.nodes}
