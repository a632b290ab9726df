"""Layers rounded to bfloat16 where the target multiplies it."""

from __future__ import annotations

import numpy as np
import pytest

import graphopt
from graphopt.accuracy.budget import Budget
from graphopt.accuracy.datasets import in_batches
from graphopt.ir.graph import Graph
from graphopt.passes.round_layers import RoundLayers
from graphopt.pipeline.base import Pass, PassContext
from graphopt.pipeline.presets import O3
from graphopt.targets import base
from graphopt.targets.cpu.target import CpuTarget
from graphopt.testing import Lavish, assert_rewrites, assert_unchanged, parse, run_onnxruntime

LAYERS = """(float[N,64] x) => (float[N,8] y)
<float[64,128] w, float[128] b, float[128,64] v, float[64,8] u> {
    a = Gemm(x, w, b)
    r = Relu(a)
    c = MatMul(r, v)
    y = MatMul(c, u)
}"""


def test_attributes_and_bias_stay() -> None:
    assert_rewrites(
        RoundLayers(),
        """(float[N,32] x) => (float[N,40] y) <float[40,32] w, float[40] b> {
            y = Gemm<transB=1, beta=2.0>(x, w, b)
        }""",
        """(float[N,32] x) => (float[N,40] y) <bfloat16[40,32] w, float[40] b> {
            r = Cast<to=16>(x)
            d = Cast<to=1>(r)
            v = Cast<to=1>(w)
            y = Gemm<transB=1, beta=2.0>(d, v, b)
        }""",
    )


def test_weights_of_half_precision() -> None:
    assert_rewrites(
        RoundLayers(),
        """(float[N,32] x) => (float[N,32] y) <float16[32,32] h> {
            w = Cast<to=1>(h)
            y = MatMul(x, w)
        }""",
        """(float[N,32] x) => (float[N,32] y) <bfloat16[32,32] w> {
            r = Cast<to=16>(x)
            d = Cast<to=1>(r)
            v = Cast<to=1>(w)
            y = MatMul(d, v)
        }""",
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(float[N,8] x) => (float[N,64] y) <float[8,64] w> { y = MatMul(x, w) }", "narrow"),
        ("(float[32,N] x) => (float[N,32] y) <float[32,32] w> { y = Gemm<transA=1>(x, w) }", None),
        ("(float[N,32] x, float[32,32] w) => (float[N,32] y) { y = MatMul(x, w) }", None),
        (
            """(float[N,32] x) => (float[N,32] y) <int8[32,32] c, float[32] s> {
                w = DequantizeLinear<axis=1>(c, s)
                y = MatMul(x, w)
            }""",
            None,
        ),
        (
            """(float[N,32] x) => (float[N,32] y, float[N,32] z) <float[32,32] w> {
                y = MatMul(x, w)  z = MatMul(y, w)
            }""",
            None,
        ),
    ],
)
def test_left_alone(text: str, reason: str | None) -> None:
    assert_unchanged(RoundLayers(), text, reason)


def test_not_offered_where_it_gains_nothing() -> None:
    class Plain(Lavish):
        multiplies_bfloat16 = False

    graph = parse(LAYERS)
    assert not RoundLayers().run(graph, PassContext(budget=Plain()))


@pytest.mark.parametrize(
    ("target", "offered"),
    [
        ("cpu:sapphirerapids", True),
        ("cpu:znver4", True),
        ("cpu:neoverse-v1", True),
        ("cpu:x86-64-v3", False),
        ("onnxruntime", False),
        ("cuda", False),
    ],
)
def test_targets_that_have_it(target: str, offered: bool) -> None:
    assert base.find(target).multiplies_bfloat16 == offered


def _rounded() -> tuple[Graph, Graph]:
    source, rounded = parse(LAYERS), parse(LAYERS)
    RoundLayers().run(rounded, PassContext(budget=Lavish()))
    return source, rounded


def test_rounded_layers_lose_little() -> None:
    source, rounded = _rounded()
    feeds = {"x": np.random.default_rng(0).standard_normal((9, 64), np.float32)}
    wanted, found = (run_onnxruntime(graph, feeds)["y"] for graph in (source, rounded))
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert 1e-5 < error < 0.02


def test_kernels_round_what_the_graph_rounds() -> None:
    _, rounded = _rounded()
    target = CpuTarget.parse("sapphirerapids")
    working = target.legalize(rounded)
    layers = [node for node in working.nodes if node.op_type == "Dense"]
    assert ["words" in layer.attrs for layer in layers] == [True, True, False]
    assert layers[0].inputs[0] is working.inputs[0]
    assert "amx_bf16" in target._using(working).features
    assert "amx_bf16" not in target.features
    plain = CpuTarget.parse("x86-64-v3").legalize(rounded)
    assert not any("words" in node.attrs for node in plain.walk())


def test_layers_that_are_not_rounded_stay_in_float32() -> None:
    working = CpuTarget.parse("sapphirerapids").legalize(parse(LAYERS))
    assert not any("words" in node.attrs for node in working.walk())


@pytest.mark.parametrize(("target", "rounds"), [("cpu:znver4", True), ("cpu:x86-64-v3", False)])
def test_within_a_budget(target: str, rounds: bool) -> None:
    """One that 8 bits would exceed."""
    rng = np.random.default_rng(0)
    data = in_batches({"x": rng.standard_normal((256, 64), np.float32)})
    budget = Budget(data, 0.3, "mean-error")
    found = graphopt.optimize(parse(LAYERS), passes="round-layers", budget=budget, target=target)
    casts = [node.attr("to") for node in found.nodes if node.op == "Cast"]
    assert (casts.count(16) == 2) == rounds


def test_it_comes_after_8_bits() -> None:
    names = [step.name for step in O3.steps if isinstance(step, Pass)]
    assert names.index("quantize-activations") < names.index("round-layers")
