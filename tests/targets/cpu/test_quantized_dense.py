"""Layers between QuantizeLinear and DequantizeLinear become 8-bit GEMMs where that is the same."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir.graph import Graph
from graphopt.targets.cpu.kernels.row_codes import RowQuantization
from graphopt.targets.cpu.legalize import legalize
from graphopt.targets.cpu.target import CpuTarget
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


# As in a cross network: the result is multiplied and added to.
RESIDUAL = (
    LAYER.format(zero="uint8 z = {120}", axis=1, activation="Relu")
    .replace("y = Relu(a)", "m2 = Mul(a, x5)\n y = Add(m2, x5)")
    .replace("float[N,12] x)", "float[N,12] x, float[N,5] x5)")
)


def layer(zero: str = "uint8 z = {120}", axis: int = 1, activation: str = "Relu") -> str:
    return LAYER.format(zero=zero, axis=axis, activation=activation)


CHAIN = """g (float[N,12] x) => (float[N,5] y) <
    float s = {0.03}, uint8 z = {99}, int8[12,8] v, float[8] vs, float[8] b,
    float t = {0.02}, uint8 u = {7}, int8[8,5] w, float ws = {0.02}> {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    e = DequantizeLinear<axis=1>(v, vs)
    h = Gemm(d, e, b)
    r = Relu(h)
    p = QuantizeLinear(r, t, u)
    f = DequantizeLinear(p, t, u)
    g = DequantizeLinear(w, ws)
    y = MatMul(f, g)
}"""
NODES = CHAIN.index("y = MatMul")


MULTIPLIES_BYTES = pytest.mark.skipif(
    not CpuTarget.parse("").multiplies_bytes, reason="this CPU multiplies no bytes"
)


def legalized(text: str, in_bytes: bool = True) -> Graph:
    graph: Graph = parse(text)
    legalize(graph, lanes=16, in_bytes=in_bytes)
    return graph


def dense(text: str, in_bytes: bool = True) -> list[tuple[bool, str]]:
    """Of each layer, whether it multiplies in 8 bits, and what it gives."""
    nodes = legalized(text, in_bytes).nodes
    return [("data" in n.attrs, n.output.dtype) for n in nodes if n.op_type == "Dense"]


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "Softplus"])
def test_one_kernel_per_layer(activation: str) -> None:
    for text in (layer(activation=activation), GEMM, GEMM.replace("=1>", "=1, alpha=2.0>")):
        assert len(list(legalized(text).nodes)) == 1
        assert dense(text) == [(True, "float32")]


def test_without_the_instructions_it_multiplies_floats() -> None:
    assert dense(layer(), in_bytes=False) == [(False, "float32")]
    assert dense(CHAIN, in_bytes=False) == [(False, "float32")] * 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (layer().replace("d = DequantizeLinear(q, s, z)", "d = Identity(x)"), "float data"),
        (layer().replace("int8[12,5] w, float[5] ws", "int8[12,5] w, float[12] ws").replace(
            "axis=1", "axis=0"), "a scale per row"),
    ],
)  # fmt: skip
def test_left_alone(text: str, why: str) -> None:
    assert dense(text) == [(False, "float32")], why


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (layer().replace("DequantizeLinear(q, s, z)", "DequantizeLinear(q, t, z)").replace(
            "float s = {0.03},", "float s = {0.03}, float t = {0.04},"), "another scale"),
        (layer().replace("DequantizeLinear(q, s, z)", "DequantizeLinear(q, s, p)").replace(
            "uint8 z = {120},", "uint8 z = {120}, uint8 p = {3},"), "another zero point"),
    ],
)  # fmt: skip
def test_codes_that_stand_for_other_numbers_are_multiplied(text: str, why: str) -> None:
    layers = [node for node in legalized(text).nodes if node.op_type == "Dense"]
    assert [(n.inputs[0].dtype, "data" in n.attrs) for n in layers] == [("uint8", True)], why  # type: ignore[union-attr]
    odd = text.replace("N,12]", "N,10]").replace("[12,5]", "[10,5]")
    assert dense(odd) == [(False, "float32")], "not in whole groups"


def test_codes_pass_from_layer_to_layer() -> None:
    assert dense(CHAIN) == [(True, "uint8"), (True, "float32")]
    assert len(list(legalized(CHAIN).nodes)) == 2
    twice = CHAIN[:NODES] + "a = MatMul(f, g)\n k = Relu(a)\n c = MatMul(f, g)\n y = Add(k, c) }"
    assert [given for _, given in dense(twice)].count("uint8") == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (CHAIN.replace("=> (float[N,5] y)", "=> (float[N,5] y, float[N,8] r)"), "it is an output"),
        (CHAIN[:NODES] + "a = MatMul(f, g)\n o = ReduceSum<keepdims=0>(r)\n y = Add(a, o) }",
         "others read it as floats"),
        (CHAIN[:NODES] + """k = QuantizeLinear(r, s, u)
            l = DequantizeLinear(k, s, u)
            a = MatMul(l, g)
            c = MatMul(f, g)
            m = Sigmoid(a)
            y = Add(m, c) }""", "another layer rounds it to other codes"),
        (CHAIN.replace("r = Relu(h)", "r = Softmax(h)"), "the layer does not compute it"),
        (CHAIN.replace("12,8]", "12,6]").replace("[8,5]", "[6,5]").replace("float[8]", "float[6]")
         .replace(",\n    0.01, 0.02}", "}"), "rows of 6 bytes"),
    ],
)  # fmt: skip
def test_layers_give_floats(text: str, why: str) -> None:
    assert all(given == "float32" for _, given in dense(text)), why
    assert sum(eight for eight, _ in dense(text)) >= 2


@MULTIPLIES_BYTES
@pytest.mark.parametrize(
    "text", [layer(), layer("int8 z = {-7}", activation="Sigmoid"), GEMM, RESIDUAL]
)
def test_the_same_numbers(text: str) -> None:
    graph = parse(text)
    compiled = Compiled(graph)
    for batch in (1, 7, 65):
        feeds = random_inputs(graph, {"N": batch}, seed=batch)
        expected = run_onnxruntime(graph, feeds)["y"]
        # Sums of 12 products, rounded in float32 there, exact here.
        np.testing.assert_allclose(compiled(feeds)["y"], expected, rtol=1e-5, atol=1e-5)


@MULTIPLIES_BYTES
def test_the_same_codes_between_layers() -> None:
    graph = parse(CHAIN)
    compiled = Compiled(graph)
    for batch in (1, 7, 65):
        feeds = random_inputs(graph, {"N": batch}, seed=batch)
        expected = run_onnxruntime(graph, feeds)["y"]
        found = compiled(feeds)["y"]
        # A sum near the middle of two codes may go to the other one.
        assert np.mean(np.abs(found - expected) > 1e-5) < 0.02
        assert np.abs(found - expected).max() <= 0.02 * 128 * 0.02 + 1e-5


def test_without_the_instructions_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuTarget, "multiplies_bytes", property(lambda self: False))
    for text in (layer(), GEMM, RESIDUAL, CHAIN):
        graph = parse(text)
        feeds = random_inputs(graph, {"N": 7}, seed=7)
        expected = run_onnxruntime(graph, feeds)["y"]
        np.testing.assert_allclose(Compiled(graph)(feeds)["y"], expected, rtol=1e-5, atol=1e-5)


DYNAMIC = """g (float[N,64] x) => (float[N,5] y) <int8[64,8] v, float[8] vs, float[8] b,
    float t = {0.02}, uint8 u = {7}, int8[8,5] w, float ws = {0.02}> {
    m = graphopt.DynamicMatMul(x, v, vs)
    h = Add(m, b)
    r = Relu(h)
    p = QuantizeLinear(r, t, u)
    f = DequantizeLinear(p, t, u)
    g = DequantizeLinear(w, ws)
    y = MatMul(f, g)
}"""


def test_rows_of_a_range_each_are_one_kernel_with_what_follows() -> None:
    graph = CpuTarget.parse("icelake-server").legalize(parse(DYNAMIC))
    first, second = graph.nodes
    assert first.attrs["data"] == RowQuantization()
    assert (first.attrs["activation"], first.output.dtype) == ("relu", "uint8")
    assert second.inputs[0] is first.output


def test_codes_do_not_pass_to_a_layer_that_finds_the_range_of_its_rows() -> None:
    text = """g (float[N,64] x) => (float[N,8] y)
    <int8[64,64] v, float[64] vs, int8[64,8] w, float[8] ws> {
        m = graphopt.DynamicMatMul(x, v, vs)
        r = Relu(m)
        y = graphopt.DynamicMatMul(r, w, ws)
    }"""
    first, _ = CpuTarget.parse("icelake-server").legalize(parse(text)).nodes
    assert first.output.dtype == "float32"


def test_without_the_instructions_rows_are_rounded_and_multiplied_as_floats() -> None:
    graph = CpuTarget.parse("x86-64-v2").legalize(parse(DYNAMIC))
    ops = [node.op_type for node in graph.nodes]
    assert "DynamicMatMul" not in ops
    assert not any("data" in node.attrs for node in graph.nodes)
