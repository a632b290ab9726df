"""Inputs of layers in 8 bits: of which layers, in which range."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

import graphopt
from graphopt.accuracy.budget import Budget
from graphopt.accuracy.datasets import in_batches
from graphopt.ir.onnx_io import to_proto
from graphopt.passes.quantize_activations import CodeRange, QuantizeActivations
from graphopt.testing import (
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
            w = DequantizeLinear<axis=0>(c, s)
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


def test_ranges_hold_zero_exactly() -> None:
    rng = np.random.default_rng(0)
    for floats in (rng.random(99) + 5, -rng.random(99) - 5, rng.normal(size=99), np.zeros(9)):
        found = CodeRange.of([floats])
        assert found.rounded(np.zeros(1)) == 0
        assert np.abs(found.rounded(floats) - floats).max() <= found.scale * 1.01


def test_rare_outliers_are_clipped() -> None:
    floats = np.random.default_rng(0).normal(size=100_000)
    floats[0] = 1000
    found = CodeRange.of([floats[1:]])
    assert CodeRange.of([floats]).scale == pytest.approx(1000 / 255, rel=0.01)  # it is worth it
    assert found.scale < 10 / 255
    assert found.error < 0.01


def test_no_rows_give_some_range() -> None:
    assert CodeRange.of([np.zeros((0, 3))]).scale > 0


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
