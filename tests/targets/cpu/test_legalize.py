"""Dense layers become packed GEMMs, with their bias and activation inside."""

from __future__ import annotations

import numpy as np
import pytest

import graphopt
from graphopt.analysis.cost import factor, node_cost
from graphopt.errors import InputError
from graphopt.ir.graph import Graph, Node
from graphopt.machine import host_features
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.kernels.bfloat16 import words_for
from graphopt.targets.cpu.legalize import legalize
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime


def legalized(text: str) -> tuple[Graph, list[Node]]:
    graph = parse(text)
    legalize(graph, lanes=8)
    return graph, [node for node in graph.nodes if node.domain == DOMAIN]


def left(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes if node.domain != DOMAIN]


LAYER = """g (float[N,5] x) => (float[N,7] y) <float[5,7] w, float[7] b> {{
    h = MatMul(x, w) s = Add(h, b) y = {activation}(s) }}"""


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Sigmoid", "Tanh"])
def test_one_kernel_per_layer(activation: str) -> None:
    graph, layers = legalized(LAYER.format(activation=activation))
    assert not left(graph)
    assert len(layers) == 1
    assert layers[0].attrs["lanes"] == 8


@pytest.mark.parametrize(("limit", "far"), [(2 * 5 * 7 * 4, False), (2 * 5 * 7 * 4 - 1, True)])
def test_weights_of_all_layers_decide_whether_they_are_far(
    monkeypatch: pytest.MonkeyPatch, limit: int, far: bool
) -> None:
    monkeypatch.setattr("graphopt.targets.cpu.legalize.FAR_BYTES", limit)
    text = """g (float[N,5] x) => (float[N,7] y, float[N,7] z) <float[5,7] v, float[5,7] w> {
        y = MatMul(x, v) z = MatMul(x, w) }"""
    _, layers = legalized(text)
    assert [bool(layer.attrs.get("far")) for layer in layers] == [far, far]


def test_other_activations_stay() -> None:
    graph, layers = legalized(LAYER.format(activation="Exp"))
    assert left(graph) == ["Exp"]
    assert len(layers) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "g (float[N,5] x, float[5,7] w) => (float[N,7] y) { y = MatMul(x, w) }",
            "computed weights",
        ),
        ("g (double[N,5] x) => (double[N,7] y) <double[5,7] w> { y = MatMul(x, w) }", "double"),
        ("g (float[5] x) => (float[7] y) <float[5,7] w> { y = MatMul(x, w) }", "a vector"),
        ("g (float[N,3,5] x) => (float[N,3,7] y) <float[3,5,7] w> { y = MatMul(x, w) }", "batched"),
    ],
)
def test_what_stays(text: str, why: str) -> None:
    _, layers = legalized(text)
    assert not [layer for layer in layers if layer.op_type == "Dense"], why


CROSS = """g (float[N,5] x) => (float[N,5] y) <float[5,5] w, float[5] b> {
    s = Gemm(x, w, b) m = Mul(x, s) y = Add(m, x) }"""
GATE = """g (float[N,2,5] x, float[N,2,19] t) => (float[N,2,19] y) <float[5,19] w> {
    h = MatMul(x, w) s = Sigmoid(h) y = Mul(s, t) }"""


@pytest.mark.parametrize(("text", "steps"), [(CROSS, ["mul", "add"]), (GATE, ["mul"])])
def test_operands_join_at_the_store(text: str, steps: list[str]) -> None:
    graph, layers = legalized(text)
    assert not left(graph)
    assert [[step.op for step in layer.attrs["steps"]] for layer in layers] == [steps]


BROADCAST = """g (float[N,3,5] x, float[N,1,7] u, float[N,3,7] t) => (float[N,3,7] y)
    <float[5,7] w, float[7] row> {{ h = MatMul(x, w) {} }}"""
AROUND = {
    "before": ("a = Add(h, t) y = Relu(a)", [("add", 1)], 1),
    "a row of theirs": ("a = Add(u, h) y = Sigmoid(a)", [("add", 3)], 1),
    "between": ("a = Add(h, u) r = Relu(a) y = Mul(r, t)", [("add", 3), ("mul", 1)], 1),
    "a constant after": ("r = Tanh(h) y = Add(r, row)", [("add", 0)], 0),
    "written out": ("a = Add(h, u) s = Sigmoid(a) y = Mul(s, a)", [("add", 3)], 1),
}


@pytest.mark.parametrize("name", AROUND)
def test_operands_around_the_activation(name: str) -> None:
    body, steps, before = AROUND[name]
    graph, (layer,) = legalized(BROADCAST.format(body))
    assert not left(graph)
    assert [(step.op, step.every) for step in layer.attrs["steps"]] == steps
    assert layer.attrs["before"] == before
    source = parse(BROADCAST.format(body))
    compiled = Compiled(source)
    for size in (1, 2, 9):
        feeds = random_inputs(source, {"N": size})
        expected = run_onnxruntime(source, feeds)["y"]  # sums of five products in another order
        np.testing.assert_allclose(compiled(feeds)["y"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "inputs", ["float[N,T,5] x, float[N,1,7] t", "float[N,3,5] x, float[1,3,7] t"]
)
def test_rows_that_repeat_otherwise_stay(inputs: str) -> None:
    graph, _ = legalized(
        f"g ({inputs}) => (float[] y) <float[5,7] w> {{ h = MatMul(x, w) y = Add(h, t) }}"
    )
    assert left(graph) == ["Add"]


@pytest.mark.parametrize(
    ("body", "stay"),
    [
        ("h = MatMul(x, w) y = Mul(h, h)", ["Mul"]),
        ("h = MatMul(x, w) y = Mul(h, p)", ["Mul"]),
        ("h = MatMul(x, w) a = Add(h, t) s = Mul(a, t) y = Add(s, t)", ["Add"]),
        ("h = MatMul(x, w) r = Relu(h) a = Add(r, t) y = Relu(a)", ["Relu"]),
        ("h = MatMul(x, w) a = Add(h, t) z = Exp(h) y = Add(a, z)", ["Add", "Exp", "Add"]),
    ],
)
def test_other_operands_stay(body: str, stay: list[str]) -> None:
    text = f"""g (float[N,5] x, float[N,7] t, float[N,1] p) => (float[N,7] y)
        <float[5,7] w, float[7] row> {{ {body} }}"""
    graph, layers = legalized(text)
    assert left(graph) == stay
    assert len(layers) == 1


def test_a_layer_that_others_read_keeps_its_value() -> None:
    graph, layers = legalized(
        """g (float[N,5] x) => (float[N,7] y, float[N,7] h) <float[5,7] w> {
            h = MatMul(x, w) y = Relu(h) }"""
    )
    assert left(graph) == ["Relu"]
    assert len(layers) == 1


@pytest.mark.parametrize(
    "text",
    [
        LAYER.format(activation="Relu"),
        """g (float[N,5] x) => (float[N,3] y) <float[3,5] w, float[1] c> {
            h = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, c) y = Sigmoid(h) }""",
        """g (float[N,4,5] x) => (float[N,4,33] y) <float[5,33] w, float[1,1,33] b> {
            h = MatMul(x, w) y = Add(b, h) }""",
        "g (float[N,5] x) => (float[N,1] y) <float[5,1] w, float[1,1] c> { y = Gemm(x, w, c) }",
        CROSS,
        GATE,
    ],
)
def test_the_same_numbers(text: str) -> None:
    # What a target compiles is legalized by it; see `CpuTarget.compile`.
    graph = parse(text)
    working = graph.clone()
    legalize(working, lanes=8)
    compiled = Compiled(working)
    for size in (1, 2, 9):
        feeds = random_inputs(graph, {"N": size})
        expected, found = run_onnxruntime(graph, feeds)["y"], compiled(feeds)["y"]
        # Sums of five products: the order of additions differs.
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


CONV = """g (float[N,5,2,3] x) => (float[N,4,2,3] y) <float[4,5,1,1] w, float[4] b> {{
    c = Conv<{attrs}>(x, w, b) y = Relu(c) }}"""


def test_a_convolution_of_one_element_is_one_kernel() -> None:
    graph, layers = legalized(CONV.format(attrs="kernel_shape=[1,1]"))
    assert not left(graph)
    assert [(node.op_type, node.attrs["activation"]) for node in layers] == [("Pointwise", "relu")]
    feeds = random_inputs(graph, {"N": 3}, seed=0)
    text = CONV.format(attrs="kernel_shape=[1,1]")
    expected = run_onnxruntime(parse(text), feeds)["y"]
    # Sums of 5 products in another order.
    np.testing.assert_allclose(Compiled(parse(text))(feeds)["y"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        CONV.replace("2,3] y", "4,5] y").format(attrs="pads=[1,1,1,1]"),
        CONV.replace("2,3] y", "1,2] y").format(attrs="strides=[2,2]"),
        """g (float[N,6,3] x) => (float[N,4,3] y) <float[4,3,1] w> { y = Conv<group=2>(x, w) }""",
        """g (float[N,6,3] x) => (float[N,4,2] y) <float[4,6,2] w> { y = Conv(x, w) }""",
        """g (float[N,6,T] x) => (float[N,4,T] y) <float[4,6,1] w> { y = Conv(x, w) }""",
    ],
)
def test_other_convolutions_stay(text: str) -> None:
    graph, layers = legalized(text)
    assert "Conv" in left(graph)
    assert not layers


def test_what_a_gemm_adds_may_be_computed() -> None:
    text = """g (float[N,5] x, float[1,6] u) => (float[N,7] y) <float[5,7] w, float[7,6] v> {
        c = Gemm<transB=1>(u, v) y = Gemm<alpha=0.5>(x, w, c) }"""
    graph, layers = legalized(text)
    assert not left(graph)
    assert len(layers) == 2
    source = parse(text)
    feeds = random_inputs(source, {"N": 9})
    wanted = run_onnxruntime(source, feeds)["y"]  # sums of five terms in another order
    np.testing.assert_allclose(Compiled(source)(feeds)["y"], wanted, rtol=1e-5, atol=1e-6)


WIDE = """g (float[N,40] x) => (float[N,1] y, float[N,40] z) <float[40,64] w, float[64,1] v> {
    h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) n = Neg(x) z = Relu(n) }"""


def test_wide_layers_multiply_bfloat16() -> None:
    graph = parse(WIDE)
    legalize(graph, lanes=16, words=words_for({"avx512_bf16"}, 16), every_layer=True)
    layers = [node for node in graph.nodes if node.op == f"{DOMAIN}::Dense"]
    assert ["words" in layer.attrs for layer in layers] == [True, False]
    sizes = {"N": 1, factor("dpbf16ps"): 1}
    read = [node_cost(layer).at(sizes).read for layer in layers]  # type: ignore[union-attr]
    assert read == [4 * 40 + 2 * 40 * 64, 4 * 64 + 4 * 64]


def test_wide_layers_store_bfloat16_where_products_of_it_are_slow() -> None:
    hidden = {"avx512_bf16", "avx512_fp16"}
    assert words_for(hidden, 16) is None
    assert words_for(hidden | {"amx_tile", "amx_bf16"}, 16) is not None
    graph = parse(WIDE)
    legalize(graph, lanes=16, words=None, every_layer=True)
    layers = [node for node in graph.nodes if node.op == f"{DOMAIN}::Dense"]
    stored = [layer.inputs[1].dtype for layer in layers if layer.inputs[1] is not None]
    assert stored == ["bfloat16", "float32"]
    read = [node_cost(layer).at({"N": 1}).read for layer in layers]  # type: ignore[union-attr]
    assert read == [4 * 40 + 2 * 40 * 64, 4 * 64 + 4 * 64]


@pytest.mark.skipif("avx512_bf16" not in host_features(), reason="this CPU lacks AVX512-BF16")
def test_bfloat16_is_close_and_not_equal() -> None:
    graph = parse(WIDE)
    feeds = random_inputs(graph, {"N": 7})
    expected = run_onnxruntime(graph, feeds)
    artifact = graphopt.compile(graph, precision="bf16", inputs=feeds)
    assert artifact.precision == "bf16"
    found = artifact.run(feeds)
    error = np.abs(found["y"] - expected["y"]).max() / np.abs(expected["y"]).max()
    assert 1e-6 < error < 0.02  # operands have 8 significant bits
    np.testing.assert_array_equal(found["z"], expected["z"])


@pytest.mark.parametrize("op", ["y = MatMul(x, w)", "y = Gemm(x, w, c)"])
@pytest.mark.parametrize(
    "rows",
    [
        "(float[N,A] a, float[N,B] b) => (float[N,4] y) {} {{ x = Concat<axis=1>(a, b) {} }}",
        "(float[N,A,B] a, float[N,1] b) => (float[N,4] y) {} {{ x = Flatten(a) {} }}",
    ],
    ids=["joined", "flattened"],
)
def test_rows_whose_width_the_inputs_decide(rows: str, op: str) -> None:
    graph = parse(rows.format("<float[8,4] w, float[4] c>", op))
    compiled, ones = Compiled(graph), np.ones((3, 1), np.float32)
    a = np.linspace(-1, 1, 24, dtype=np.float32)
    a = a.reshape(3, 2, 4) if graph.inputs[0].rank == 3 else a[:21].reshape(3, 7)
    feeds = {"a": a, "b": ones}
    expected = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_allclose(compiled(feeds)["y"], expected, 1e-5, 1e-6)
    with pytest.raises(InputError, match="and 8 must be equal"):
        compiled({"a": a[:, 1:], "b": ones})
