"""BatchNormalization goes into the weights before it, or becomes a Mul and an Add."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.fold_batch_norm import FoldBatchNorm
from graphopt.testing import (
    assert_keeps_outputs,
    assert_rewrites,
    assert_unchanged,
    parse,
)

STATISTICS = "float[8] scale, float[8] shift, float[8] mean, float[8] var"
NORM = "n = BatchNormalization(h, scale, shift, mean, var) y = Relu(n)"


def graph(linear: str, weights: str, inputs: str = "float[N,4] x", outputs: str = "") -> str:
    return f"({inputs}) => (float[] y{outputs}) <{weights}, {STATISTICS}> {{ {linear} {NORM} }}"


@pytest.mark.parametrize(
    ("linear", "weights", "after", "folded"),
    [
        (
            "h = Gemm(x, w, b)",
            "float[4,8] w, float[8] b",
            "n = Gemm(x, w, b)",
            "float[4,8] w, float[8] b",
        ),
        ("h = Gemm(x, w)", "float[4,8] w", "n = Gemm(x, w, b)", "float[4,8] w, float[8] b"),
        (
            "h = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b)",
            "float[8,4] w, float[8] b",
            "n = Gemm<transB=1, alpha=0.5>(x, w, b)",
            "float[8,4] w, float[8] b",
        ),
        (
            "h = Gemm(x, w, b)",
            "float[4,8] w, float[1,8] b",
            "n = Gemm(x, w, b)",
            "float[4,8] w, float[8] b",
        ),
        (
            "h = Gemm(x, w, b)",
            "float[4,8] w, float b = {3}",
            "n = Gemm(x, w, b)",
            "float[4,8] w, float[8] b",
        ),
        (
            "h = MatMul(x, w)",
            "float[4,8] w",
            "m = MatMul(x, w) n = Add(m, b)",
            "float[4,8] w, float[8] b",
        ),
        (
            "m = MatMul(x, w) h = Add(b, m)",
            "float[4,8] w, float[8] b",
            "m = MatMul(x, w) n = Add(m, b)",
            "float[4,8] w, float[8] b",
        ),
    ],
)
def test_linear_layers_take_it_in(linear: str, weights: str, after: str, folded: str) -> None:
    wanted = f"(float[N,4] x) => (float[] y) <{folded}> {{ {after} y = Relu(n) }}"
    assert_rewrites(FoldBatchNorm(), graph(linear, weights), wanted)


def test_convolutions_take_it_in() -> None:
    before = graph("h = Conv(x, w, b)", "float[8,3,2] w, float[8] b", "float[N,3,5] x")
    wanted = """(float[N,3,5] x) => (float[] y) <float[8,3,2] w, float[8] b> {
        n = Conv(x, w, b)
        y = Relu(n)
    }"""
    assert_rewrites(FoldBatchNorm(), before, wanted)


ALONE = "m = Mul(h, f) n = Add(m, o) y = Relu(n)"


@pytest.mark.parametrize(
    ("linear", "weights", "inputs", "kept", "constants"),
    [
        ("h = Sigmoid(x)", "int64 none = {0}", "float[N,8] x", "h = Sigmoid(x)", "[8]"),
        ("h = Sigmoid(x)", "int64 none = {0}", "float[N,8,5] x", "h = Sigmoid(x)", "[8,1]"),
        (
            "h = MatMul(x, w)",
            "float[4,5] w",
            "float[N,8,4] x",
            "h = MatMul(x, w)",
            "[8,1]",
        ),
        (
            "h = Gemm(x, w, b)",
            "float[4,8] w",
            "float[N,4] x, float[N,8] b",
            "h = Gemm(x, w, b)",
            "[8]",
        ),
    ],
)
def test_alone_it_is_a_mul_and_an_add(
    linear: str, weights: str, inputs: str, kept: str, constants: str
) -> None:
    wanted = f"""({inputs}) => (float[] y)
    <{weights}, float{constants} f, float{constants} o> {{ {kept} {ALONE} }}"""
    assert_rewrites(FoldBatchNorm(), graph(linear, weights, inputs), wanted)


@pytest.mark.parametrize(
    ("linear", "weights", "inputs", "constants"),
    [
        ("p = MatMul(x, w) h = Add(p, b)", "float[4,8] w, float[3,8] b", "float[3,4] x", "[8]"),
        ("h = Gemm(x, w, b)", "float[4,8] w, float[3,1] b", "float[3,4] x", "[8]"),
        ("h = Conv(x, w, b)", "float[8,3,2] w", "float[N,3,5] x, float[8] b", "[8,1]"),
    ],
)
def test_a_bias_that_is_not_per_channel_stays(
    linear: str, weights: str, inputs: str, constants: str
) -> None:
    wanted = f"""({inputs}) => (float[] y)
    <{weights}, float{constants} f, float{constants} o> {{ {linear} {ALONE} }}"""
    ctx = assert_rewrites(FoldBatchNorm(), graph(linear, weights, inputs), wanted)
    assert any("the bias is not a constant" in why for _, _, why in ctx.stats.refusals)


@pytest.mark.parametrize("outputs", [", float[] h", ", float[] z"])
def test_a_layer_that_others_read_keeps_its_weights(outputs: str) -> None:
    linear = "h = Gemm(x, w, b) z = Neg(h)" if "z" in outputs else "h = Gemm(x, w, b)"
    before = graph(linear, "float[4,8] w, float[8] b", outputs=outputs)
    wanted = f"""(float[N,4] x) => (float[] y{outputs})
    <float[4,8] w, float[8] b, float[8] f, float[8] o> {{ {linear} {ALONE} }}"""
    ctx = assert_rewrites(FoldBatchNorm(), before, wanted)
    assert any("also read elsewhere" in why for _, _, why in ctx.stats.refusals)


@pytest.mark.parametrize(
    ("linear", "weights", "inputs"),
    [
        ("h = Sigmoid(x)", "int64 none = {0}", "float[3,8] x"),
        ("h = Gemm(x, w)", "float[4,8] w", "float[3,4] x"),
        ("h = MatMul(x, w)", "float[4,8] w", "float[3,4] x"),
        ("h = Conv(x, w)", "float[8,3,2] w", "float[3,3,5] x"),
    ],
)
def test_training_mode_stays(linear: str, weights: str, inputs: str) -> None:
    text = graph(linear, weights, inputs)
    text = text.replace("n = BatchNormalization(", "n, m, v = BatchNormalization<training_mode=1>(")
    assert_unchanged(FoldBatchNorm(), text, "training mode")


def test_statistics_that_are_computed_stay() -> None:
    text = """(float[N,8] x, float[8] scale) => (float[] y) <float[8] s, float[8] m, float[8] v> {
        y = BatchNormalization(x, scale, s, m, v)
    }"""
    assert_unchanged(FoldBatchNorm(), text)


def test_tiny_variances_are_folded_in_double_precision() -> None:
    graph_ = parse(graph("h = Gemm(x, w, b)", "float[4,8] w, float[8] b"))
    (norm,) = (node for node in graph_.nodes if node.op == "BatchNormalization")
    graph_.set_input(norm, 4, graph_.constant(np.full(8, 1e-12, np.float32)))
    graph_.set_attr(norm, "epsilon", 1e-3)
    assert_keeps_outputs(FoldBatchNorm(), graph_)
