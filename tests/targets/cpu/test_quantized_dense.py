"""Layers between QuantizeLinear and DequantizeLinear become 8-bit GEMMs where that is the same."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.artifact import host_features
from graphopt.ir.graph import Graph
from graphopt.targets.cpu.legalize import legalize
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

LAYER = """g (float[N,12] x) => (float[N,5] y) <
    float s = {{0.03}}, {zero}, int8[12,5] w, float[5] ws, float[5] b> {{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    v = DequantizeLinear<axis={axis}>(w, ws)
    m = MatMul(d, v)
    a = Add(m, b)
    y = {activation}(a)
}}"""
GEMM = """g (float[N,12] x) => (float[N,5] y) <float s = {0.03}, uint8 z = {99},
    uint8[5,12] w, float ws = {0.02}, uint8 wz = {128}, float[5] b> {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    v = DequantizeLinear(w, ws, wz)
    y = Gemm<transB=1>(d, v, b)
}"""


def layer(zero: str = "uint8 z = {120}", axis: int = 1, activation: str = "Relu") -> str:
    return LAYER.format(zero=zero, axis=axis, activation=activation)


def ops(text: str, vnni: bool = True) -> list[str]:
    graph: Graph = parse(text)
    legalize(graph, lanes=16, vnni=vnni)
    return [node.op_type for node in graph.nodes]


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "Tanh"])
def test_one_kernel_per_layer(activation: str) -> None:
    assert ops(layer(activation=activation)) == ["QuantizedDense"]
    assert ops(GEMM) == ["QuantizedDense"]


def test_without_the_instructions_it_stays_in_float() -> None:
    assert "QuantizedDense" not in ops(layer(), vnni=False)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (layer().replace("DequantizeLinear(q, s, z)", "DequantizeLinear(q, t, z)").replace(
            "float s = {0.03},", "float s = {0.03}, float t = {0.04},"), "another scale"),
        (layer().replace("DequantizeLinear(q, s, z)", "DequantizeLinear(q, s, p)").replace(
            "uint8 z = {120},", "uint8 z = {120}, uint8 p = {3},"), "another zero point"),
        (layer().replace("d = DequantizeLinear(q, s, z)", "d = Identity(x)"), "float data"),
        (layer().replace("int8[12,5] w, float[5] ws", "int8[12,5] w, float[12] ws").replace(
            "axis=1", "axis=0"), "a scale per row"),
        (GEMM.replace("uint8 wz = {128}", "uint8 wz = {1}").replace(
            "uint8[5,12] w", "uint8[5,12] w").replace("transB=1", "transB=1, alpha=2.0"), "alpha"),
    ],
)  # fmt: skip
def test_left_alone(text: str, why: str) -> None:
    assert "QuantizedDense" not in ops(text), why


@pytest.mark.skipif("avx512_vnni" not in host_features(), reason="this CPU lacks AVX512-VNNI")
@pytest.mark.parametrize("text", [layer(), layer("int8 z = {-7}", activation="Sigmoid"), GEMM])
def test_the_same_numbers(text: str) -> None:
    graph = parse(text)
    for batch in (1, 7, 65):
        feeds = random_inputs(graph, {"N": batch}, seed=batch)
        expected = run_onnxruntime(graph, feeds)["y"]
        # Sums of 12 products, rounded in float32 there, exact here.
        np.testing.assert_allclose(Compiled(graph)(feeds)["y"], expected, rtol=1e-5, atol=1e-5)
