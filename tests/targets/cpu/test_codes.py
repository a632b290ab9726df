"""Codes of 8 bits that ops hand to each other stay codes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from graphopt.ir.graph import Graph
from graphopt.machine import host_features
from graphopt.passes.tabulate_codes import TabulateCodes
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.spec import Pipeline
from graphopt.targets.cpu.legalize import legalize
from graphopt.targets.cpu.target import CpuTarget
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

# As ONNX Runtime's quantizer writes layers in operator format, the bias being added after rounding.
LAYERS = """g (float[N,3,12] x) => (float[N,3,8] y) <
    float xs = {{0.03}}, {dtype} xz = {{5}}, int8[12,16] v, float[16] vs, int8[16] vz,
    float hs = {{0.2}}, {dtype} hz = {{9}}, float[16] b, float gs = {{0.21}}, {dtype} gz = {{3}},
    int8[16,8] w, float ws = {{0.02}}, int8 wz = {{0}}, float ys = {{0.3}}, {dtype} yz = {{1}}> {{
    q = QuantizeLinear(x, xs, xz)
    h = QLinearMatMul(q, xs, xz, v, vs, vz, hs, hz)
    f = DequantizeLinear(h, hs, hz)
    a = Add(f, b)
    g = QuantizeLinear(a, gs, gz)
    p = QLinearMatMul(g, gs, gz, w, ws, wz, ys, yz)
    d = DequantizeLinear(p, ys, yz)
    r = DequantizeLinear(q, xs, xz)
    m = ReduceMax<keepdims=1>(r)
    y = Add(d, m)
}}"""
# Queries and keys of attention: two computed operands, one of them transposed.
PRODUCTS = """g (float[N,3,12] x) => (float[N,3,3] y) <
    float xs = {{0.03}}, {dtype} xz = {{5}}, float ys = {{0.11}}, {dtype} yz = {{2}}> {{
    q = QuantizeLinear(x, xs, xz)
    t = Transpose<perm=[0,2,1]>(q)
    p = QLinearMatMul(q, xs, xz, t, xs, xz, ys, yz)
    y = DequantizeLinear(p, ys, yz)
}}"""
MOVED = """g (float[N,4,6] x) => (float[N,6,4] y) <
    float s = {{0.03}}, {dtype} z = {{5}}, int64[3] shape = {{-1, 4, 6}}> {{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    v = Reshape(d, shape)
    t = Transpose<perm=[0,2,1]>(v)
    p = QuantizeLinear(t, s, z)
    e = DequantizeLinear(p, s, z)
    y = Sigmoid(e)
}}"""
TABLE = """g (float[N,4,6] x) => (float[N,4,6] y) <
    float s = {{0.03}}, {dtype} z = {{5}}, float t = {{0.004}}, {dtype} u = {{1}}> {{
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    v = Sigmoid(d)
    p = QuantizeLinear(v, t, u)
    y = DequantizeLinear(p, t, u)
}}"""
DTYPES = pytest.mark.parametrize("dtype", ["int8", "uint8"])


def legalized(graph: Graph, in_bytes: bool = True) -> Graph:
    graph = graph.clone()
    legalize(graph, lanes=16, in_bytes=in_bytes)
    return graph


def ops(graph: Graph) -> Counter[str]:
    return Counter(node.op_type for node in graph.nodes)


def tabulated(text: str) -> Graph:
    graph = parse(text)
    PassManager().run(graph, Pipeline((TabulateCodes(),)))
    return graph


@DTYPES
def test_layers_take_and_give_codes(dtype: str) -> None:
    found = legalized(parse(LAYERS.format(dtype=dtype)))
    layers = [node for node in found.nodes if node.op_type == "Dense"]
    assert [(n.inputs[0].dtype, n.output.dtype) for n in layers] == [("uint8", "uint8")] * 2  # type: ignore[union-attr]
    assert ops(found)["QLinearMatMul"] == 0 == ops(found)["Signed"]


@DTYPES
def test_products_of_computed_codes_are_products_of_matrices(dtype: str) -> None:
    for in_bytes in (True, False):
        found = ops(legalized(parse(PRODUCTS.format(dtype=dtype)), in_bytes))
        assert found["QLinearMatMul"] == 0 and found["RowProducts"] + found["MatrixProducts"] <= 1


@DTYPES
def test_codes_are_moved(dtype: str) -> None:
    found = ops(legalized(parse(MOVED.format(dtype=dtype))))
    assert found["QuantizeLinear"] == found["DequantizeLinear"] == 1
    other = MOVED.format(dtype=dtype).replace("QuantizeLinear(t, s, z)", "QuantizeLinear(t, o, z)")
    other = other.replace("float s = {0.03}", "float s = {0.03}, float o = {0.031}")
    assert ops(legalized(parse(other)))["QuantizeLinear"] == 2, "other codes"
    tiny = MOVED.format(dtype=dtype).replace("0.03", "1e-40")
    assert ops(legalized(parse(tiny)))["QuantizeLinear"] == 2, "its scale is not normal"


@DTYPES
@pytest.mark.parametrize("in_bytes", [True, False])
def test_tables(dtype: str, in_bytes: bool) -> None:
    found = ops(legalized(tabulated(TABLE.format(dtype=dtype)), in_bytes))
    assert found["CodeTable"] == 1 and found["Gather"] == found["Sigmoid"] == 0


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("float hs = {0.2}", "float[1,3,1] hs = {0.2, 0.2, 0.2}", "a scale for each row"),
        ("float xs = {0.03}, ", "", "a computed scale"),
    ],
)
def test_products_that_stay(old: str, new: str, why: str) -> None:
    text = LAYERS.format(dtype="uint8").replace(old, new)
    if not new:
        text = text.replace("(float[N,3,12] x)", "(float[N,3,12] x, float xs)")
    if "hs" in new:
        text = text.replace("uint8 hz = {9}", "uint8[1,3,1] hz = {9, 9, 9}").replace(
            "f = DequantizeLinear(h, hs, hz)", "f = Cast<to=1>(h)"
        )
    assert ops(legalized(parse(text)))["QLinearMatMul"] == 1, why


@DTYPES
@pytest.mark.parametrize("in_bytes", [True, False])
@pytest.mark.parametrize("text", [LAYERS, PRODUCTS, MOVED, TABLE])
def test_answers(text: str, dtype: str, in_bytes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of ONNX Runtime, to the bit where sums are of integers, and rounded by its scale.

    Without instructions for bytes weights are floats that are scaled before they are added up, so
    that a sum near the middle of two codes may become the other one: one step of `y`.
    """
    if in_bytes and not CpuTarget.parse("").multiplies_bytes:
        pytest.skip("this CPU multiplies no bytes")
    if not in_bytes:
        features = {f for f in host_features() if f != "avx512vbmi"}
        monkeypatch.setattr("graphopt.targets.cpu.target.host_features", lambda: features)
        monkeypatch.setattr(CpuTarget, "multiplies_bytes", property(lambda self: False))
    source = text.format(dtype=dtype)
    graph = parse(source)
    compiled = Compiled(tabulated(source))
    for batch in (1, 7, 65):
        feeds = random_inputs(graph, {"N": batch}, seed=batch)
        expected, found = run_onnxruntime(graph, feeds)["y"], compiled(feeds)["y"]
        exact = in_bytes or text in (PRODUCTS, MOVED, TABLE)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 if exact else 0.301)
        assert exact or (np.abs(found - expected) > 1e-6).mean() < 0.01
