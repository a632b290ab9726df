"""Weights stored in few bits: layers read 8 bits as they are, other ops read them in full."""

from __future__ import annotations

import numpy as np
import pytest

import graphopt
from graphopt.ir.graph import Graph
from graphopt.ir.types import dtype_to_numpy
from graphopt.rewrite import RewriteStats, rewrite
from graphopt.targets.cpu.legalize import legalize
from graphopt.targets.cpu.packed_weights import dequantize_to_weights
from graphopt.targets.cpu.target import CpuTarget
from graphopt.testing import Compiled, parse, random_inputs, run_compiled, run_onnxruntime

LAYER = """(float[N,6] x) => (float[N,4] y) <{weights}> {{
    w = {restore}
    y = MatMul(x, w)
}}"""
STORED = {
    "per column": ("int8[6,4] c, float[4] s", "DequantizeLinear<axis=1>(c, s)"),
    "per row": ("int8[6,4] c, float[6] s", "DequantizeLinear<axis=0>(c, s)"),
    "zero points": ("uint8[6,4] c, float[4] s, uint8[4] z", "DequantizeLinear<axis=-1>(c, s, z)"),
    "one scale": ("int8[6,4] c, float s", "DequantizeLinear(c, s)"),
    "half": ("float16[6,4] c", "Cast<to=1>(c)"),
}


GEMM = """(float[N,6] x) => (float[N,7] y) <int8[7,6] c, float[7] s, float[7] b> {
    w = DequantizeLinear<axis=0>(c, s)
    z = Gemm<transB=1>(x, w, b)
    y = Relu(z)
}"""
MATMUL = """(float[2,N,6] x) => (float[2,N,7] y)
    <uint8[6,7] c, float s = {0.02}, uint8 z = {128}, float[7] b> {
    w = DequantizeLinear(c, s, z)
    m = MatMul(x, w)
    a = Add(m, b)
    y = Sigmoid(a)
}"""


def layers(text: str) -> list[tuple[str, str]]:
    graph = parse(text)
    legalize(graph, lanes=16)
    return [(node.op_type, node.inputs[1].dtype) for node in graph.nodes]  # type: ignore[union-attr]


def rewritten(graph: Graph) -> bool:
    return rewrite(graph, (dequantize_to_weights,), RewriteStats())


@pytest.mark.parametrize("form", STORED)
def test_the_same_answers(form: str) -> None:
    weights, restore = STORED[form]
    graph = parse(LAYER.format(weights=weights, restore=restore))
    feeds = random_inputs(graph)
    wanted = run_onnxruntime(graph, feeds)["y"]
    found = run_compiled(graph, feeds)["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)  # sums of 6 terms
    assert rewritten(graph)
    assert [node.op for node in graph.nodes] == ["MatMul"]


@pytest.mark.parametrize(
    "text",
    [
        """(int64[N] ids) => (float[N,4] y) <int8[9,4] c, float[4] s> {
            t = DequantizeLinear(c, s)
            y = Gather(t, ids)
        }""",
        """(float[4] s) => (float[6,4] y) <int8[6,4] c> { y = DequantizeLinear(c, s) }""",
        """(float[N] x) => (float[N] y) <float16 c = {2}> {
            f = Cast<to=1>(c)
            y = Mul(x, f)
        }""",
        "(float[N] x) => (double[4] y) <float[4] c> { y = Cast<to=11>(c) }",
    ],
)
def test_left_alone(text: str) -> None:
    assert not rewritten(parse(text))


@pytest.mark.parametrize(
    "text", [GEMM, GEMM.replace("transB=1", "transB=1, alpha=0.5, beta=2.0"), MATMUL]
)
def test_layers_read_8_bits(text: str) -> None:
    assert layers(text) == [("Dense", "int8")]
    graph = parse(text)
    compiled = Compiled(graph)
    for rows in (1, 5, 33):
        feeds = random_inputs(graph, {"N": rows}, seed=rows)
        wanted = run_onnxruntime(graph, feeds)["y"]
        # Sums of 6 terms, of codes here and of their products with scales there.
        np.testing.assert_allclose(compiled(feeds)["y"], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (GEMM.replace("[7,6] c, float[7] s", "[7,6] c, float[6] s").replace("axis=0", "axis=1"),
         "a scale per row"),
        (MATMUL.replace("{128}", "{200}"), "codes that need 9 bits, less their zero point"),
        (GEMM.replace("7", "3"), "so few columns that vectors go along rows"),
    ],
)  # fmt: skip
def test_layers_read_weights_in_full(text: str, why: str) -> None:
    assert layers(text) == [("Dense", "float32")], why


def test_the_artifact_holds_8_bits() -> None:
    artifact = graphopt.compile(parse(GEMM.replace("7", "64").replace(",6]", ",40]")), passes="O0")
    weights = artifact.manifest["weights"]  # type: ignore[union-attr]
    (layer,) = (entry for entry in weights if np.prod(entry["shape"]) > 64)
    assert (layer["dtype"], np.prod(layer["shape"])) == ("int8", 40 * 64)  # in panels


def test_a_layer_and_a_lookup_share_a_table() -> None:
    graph = parse("""(int64[N] ids) => (float[N,9] y) <int8[9,8] c, float s> {
        w = DequantizeLinear(c, s)
        r = Gather(w, ids)
        y = Gemm<transB=1>(r, w)
    }""")
    feeds = {"ids": np.array([0, 8, 3])}
    wanted = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_allclose(run_compiled(graph, feeds)["y"], wanted, rtol=1e-5)


def test_codes_are_not_multiplied_as_bfloat16() -> None:
    """The kernel for bfloat16 knows no scales."""
    text = """(float[N,64] x) => (float[N,64] y) <int8[64,64] c, float[64] s> {
        w = DequantizeLinear<axis=1>(c, s)  y = MatMul(x, w) }"""
    working = CpuTarget.parse("sapphirerapids").computing("bf16").legalize(parse(text))
    (layer,) = working.nodes
    assert "scale" in layer.attrs and "words" not in layer.attrs


def test_rows_are_restored_after_they_were_looked_up() -> None:
    """Not the whole table on every call, which may have a million rows."""
    text = """(int64[N] i) => (float[N,4] y) <int8[9,4] c, {s} s, int8 z = {{3}}> {{
        t = DequantizeLinear<axis=1>(c, s{z}) y = Gather(t, i) }}"""
    graph = parse(text.format(s="float", z=", z"))
    feeds = {"i": np.array([0, 8, 3, -1])}
    expected = run_onnxruntime(graph, feeds)["y"]
    assert np.array_equal(run_compiled(graph, feeds)["y"], expected)
    legalize(graph, lanes=16)
    assert [node.op_type for node in graph.nodes] == ["Gather", "DequantizeLinear"]


SCALES = {
    "of columns": ("int8[9,4]", "float[4]", "", {"axis": 1}, ["Gather", "DequantizeLinear"]),
    "of rows": ("int8[9,4]", "float[9]", "", {"axis": 0}, ["QuantizedLookup"]),
    "of rows, shifted": ("uint8[9,4]", "float[9]", "uint8[9]", {"axis": -2}, ["QuantizedLookup"]),
    "of rows, far": ("uint8[9,4]", "float[9]", "", {"axis": 0}, ["DequantizeLinear", "Gather"]),
    "of rows of 4 bits": ("int4[9,4]", "float[9]", "", {"axis": 0}, ["QuantizedLookup"]),
    "of odd rows": ("uint4[9,5]", "float[9]", "uint4[9]", {"axis": 0}, ["QuantizedLookup"]),
    "of columns of 4 bits": (
        "uint4[9,4]", "float[4]", "uint4[4]", {"axis": 1}, ["Gather", "DequantizeLinear"]),
    "of blocks": (
        "int4[9,4]", "float[9,2]", "", {"axis": 1, "block_size": 2},
        ["Gather", "Gather", "DequantizeLinear"]),
}  # fmt: skip


def stored_table(form: str) -> Graph:
    """Codes over their whole range, looked up by ids of rank 2."""
    codes, scales, zeros, attrs, _ = SCALES[form]
    (low, high) = {"u": (0, 16), "i": (-8, 8)}[codes[0]]
    if "8" in codes[:5]:
        low, high = low * 16, high * 16 if zeros or codes[0] == "i" else 256
    rng = np.random.default_rng(3)

    def drawn(spec: str) -> np.ndarray:
        dtype, _, sizes = spec.rstrip("]").partition("[")
        shape = tuple(map(int, sizes.split(",")))
        if dtype == "float":
            return rng.uniform(0.01, 0.1, shape).astype(np.float32)
        # Zero points in the middle keep the differences in 8 (or 4) bits.
        middle = np.full(shape, (low + high) // 2)
        drawn = middle if spec == zeros else rng.integers(low, high, shape)
        return drawn.astype(dtype_to_numpy(dtype))

    graph = parse("(int64[N,2] i) => (int64[N,2] y) { y = Identity(i) }")
    graph.opsets[""] = 21
    (given,) = graph.inputs
    constants = [graph.constant(drawn(spec)) for spec in (codes, scales, zeros) if spec]
    before = next(iter(graph.nodes))
    table = graph.insert("DequantizeLinear", constants, attrs, before=before).output
    rows = graph.insert("Gather", [table, given], before=before).output
    graph.set_outputs([rows], ["y"])
    graph.erase(before)
    return graph


@pytest.mark.parametrize("form", SCALES)
def test_rows_with_scales_are_restored_after_they_were_looked_up(form: str) -> None:
    graph = stored_table(form)
    feeds = {"i": np.array([[0, 8], [3, -1], [7, 7]])}
    expected = run_onnxruntime(graph, feeds)["y"]
    found = run_compiled(graph, feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # a product, in one order or another
    legalize(graph, lanes=16)
    assert [node.op_type for node in graph.nodes] == SCALES[form][4]


@pytest.mark.parametrize("dtype", ["float8e4m3fn", "float8e5m2", "int4", "uint4"])
@pytest.mark.parametrize("axis", [0, 1])
def test_layers_of_narrow_weights(dtype: str, axis: int) -> None:
    """None of which compiled code reads; a float8 is no integer."""
    graph = parse("(float[N,6] x, float[6,12] w) => (float[N,12] y) { y = MatMul(x, w) }")
    graph.opsets[""] = 21
    numbers = np.random.default_rng(5).uniform(0, 7, (6, 12)).astype(dtype_to_numpy(dtype))
    scales = np.linspace(0.1, 0.3, (6, 12)[axis], dtype=np.float32)
    (product,) = graph.nodes
    inputs = [graph.constant(numbers), graph.constant(scales)]
    restored = graph.insert("DequantizeLinear", inputs, {"axis": axis}, before=product)
    graph.replace_uses(graph.inputs[1], restored.output)
    feeds = random_inputs(graph)
    expected = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_allclose(run_compiled(graph, feeds)["y"], expected, rtol=1e-5, atol=1e-5)
