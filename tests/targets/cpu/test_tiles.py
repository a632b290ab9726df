"""Models whose layers are multiplied by AMX: answers stay the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import graphopt
from graphopt.analysis.cost import node_cost
from graphopt.analysis.program import operations, to_json
from graphopt.ir.graph import Graph, Node
from graphopt.machine import host_features
from graphopt.targets.cpu import tuned
from graphopt.targets.cpu.kernels import amx as module
from graphopt.targets.cpu.kernels import bfloat16
from graphopt.targets.cpu.kernels.amx import Amx, amx_for
from graphopt.targets.cpu.kernels.bfloat16 import Words, round_bits, words_for
from graphopt.targets.cpu.legalize import legalize
from graphopt.targets.cpu.target import CpuTarget
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

ROWS = (1, 2, 15, 16, 17, 33, 96, 97, 112)
# Rows with a range each, codes for the next layer, which hands on codes too, then floats.
BYTES = """(float[N,70] x) => (float[N,20] y) <
    int8[70,132] u, float[132] us, float s = {0.2}, uint8 z = {7},
    int8[132,68] v, float[68] vs, float[68] b, float t = {2.0}, uint8 o = {0},
    int8[68,20] w, float[20] ws> {
    m = graphopt.DynamicMatMul(x, u, us)
    a = Relu(m)
    q = QuantizeLinear(a, s, z)
    d = DequantizeLinear(q, s, z)
    e = DequantizeLinear<axis=1>(v, vs)
    h = Gemm(d, e, b)
    r = Relu(h)
    p = QuantizeLinear(r, t, o)
    f = DequantizeLinear(p, t, o)
    g = DequantizeLinear<axis=1>(w, ws)
    y = MatMul(f, g)
}"""
SCALED = """(float[N,72] x) => (float[N,40] y) <int8[72,40] w, float ws = {0.02}, float[40] b> {
    q, s, z = DynamicQuantizeLinear(x)
    p = MatMulInteger(q, w, z)
    f = Cast<to=1>(p)
    t = Mul(s, ws)
    m = Mul(f, t)
    y = Add(m, b)
}"""
FLOATS = """(float[N,70] x) => (float[N,33] y) <float[70,130] u, float[130] a, float[130,33] v> {
    l = Gemm(x, u, a)
    g = Elu(l)
    y = MatMul(g, v)
}"""


@pytest.fixture
def in_tiles(tiles: Amx, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Lets models that are compiled from now on use tiles, or not."""
    if not {"avx512_vnni", "avx512_bf16"} <= host_features():
        pytest.skip("this CPU lacks AVX512-VNNI or AVX512-BF16")

    def use(wanted: bool) -> None:
        found = tiles if wanted else None
        for where in (module, bfloat16):
            monkeypatch.setattr(where, "amx_for", lambda features, operands: found)

    return use


@pytest.mark.parametrize("text", [BYTES, SCALED], ids=["in fixed ranges and by row", "scaled"])
def test_bytes_have_the_same_bits(text: str, in_tiles: Callable[[bool], None]) -> None:
    graph, calls = parse(text), list[Compiled]()
    for wanted in (False, True):
        in_tiles(wanted)
        calls.append(Compiled(graph))
    for rows in ROWS:
        feeds = random_inputs(graph, {"N": rows}, seed=rows)
        expected, found = (call(feeds)["y"] for call in calls)
        assert expected.any()
        np.testing.assert_array_equal(found, expected, err_msg=str(rows))


def test_a_row_of_bfloat16_has_the_same_bits_in_any_batch(
    in_tiles: Callable[[bool], None],
) -> None:
    in_tiles(True)
    graph = parse(FLOATS)
    feeds = random_inputs(graph, {"N": max(ROWS)}, seed=1)
    model = graphopt.compile(graph, precision="bf16", verify=False)
    together = model.run(feeds)["y"]
    for rows in ROWS:
        found = model.run({"x": feeds["x"][:rows]})["y"]
        np.testing.assert_array_equal(found, together[:rows], err_msg=str(rows))


def legalized(text: str, how: Amx | None) -> Graph:
    graph: Graph = parse(text)
    legalize(graph, lanes=16, in_bytes=True, amx=how)
    return graph


def test_which_layers_are_told() -> None:
    text = BYTES.replace("m = graphopt.DynamicMatMul(x, u, us)", "m = MatMul(x, c)").replace(
        "int8[70,132] u, float[132] us", "float[70,132] c"
    )
    layers = [node.attrs.get("amx") for node in legalized(text, Amx()).nodes]
    assert layers == [None, Amx(), Amx()]
    assert not any("amx" in node.attrs for node in legalized(text, None).nodes)


def test_targets_that_have_tiles_of_bytes() -> None:
    for mcpu in ("sapphirerapids", "graniterapids", "icelake-server,+amx-tile,+amx-int8,+amx-bf16"):
        target = CpuTarget.parse(mcpu)
        working = target.legalize(parse(BYTES))
        assert [node.attrs["amx"] for node in working.nodes] == [Amx()] * 3
        assert "amx_int8" in target._using(working).features
    for mcpu in ("icelake-server", "sapphirerapids,-amx-tile"):
        target = CpuTarget.parse(mcpu)
        working = target.legalize(parse(BYTES))
        assert all("data" in node.attrs and "amx" not in node.attrs for node in working.nodes)
        assert not any("amx" in name for name in target._using(working).features)


@pytest.mark.parametrize(("operands", "has"), [("int8", True), ("bf16", False)])
def test_instruction_sets(operands: str, has: bool) -> None:
    assert (amx_for({"amx_tile", "amx_int8"}, operands) is not None) == has
    assert amx_for({"amx_int8", "amx_bf16"}, operands) is None


def test_profiles_count_products_at_their_rate() -> None:
    """Of 132 products for each of 68 columns, a bias and an activation."""

    def counted(layer: Node) -> dict[str, int] | None:
        return operations(to_json(node_cost(layer).flops), {"N": 1})

    for how, name in ((None, "vpdpbusd"), (Amx(), "tdpbusd")):
        _, layer, _ = legalized(BYTES.replace("graphopt.DynamicMatMul(x, u, us)", "MatMul(x, c)")
            .replace("int8[70,132] u, float[132] us", "float[70,132] c"), how).nodes  # fmt: skip
        assert counted(layer) == {"": 2 * 68, name: 2 * 132 * 68}
    vectors = words_for({"avx512_bf16"}, 16)
    assert vectors is not None
    for words, name in ((vectors, "dpbf16ps"), (replace(vectors, tiles=Amx()), "tdpbf16ps")):
        graph: Graph = parse(FLOATS.replace("g = Elu(l)", "g = Identity(l)"))
        legalize(graph, lanes=16, words=words, every_layer=True)
        assert counted(next(iter(graph.nodes))) == {"": 130, name: 2 * 70 * 130}


CROSSED = """(float[N,6,16] x, float[N,3,16] y) => (float[] z) <float[18,20] w, float[20] b> {
    z = graphopt.CompressedInteraction<activation="relu">(x, y, w, b)
}"""


ATTENDED = """(float[N,20,32] q, float[N,20,32] k, float[N,20,32] v) => (float[] y) {
    y = graphopt.Attention<heads=2, dim=16>(q, k, v)
}"""


@pytest.mark.parametrize("text", [CROSSED, ATTENDED], ids=["crossed", "attended"])
def test_which_ops_multiply_bfloat16_by_tiles(text: str) -> None:
    """Those without constant weights, or that make their data, do so where there are tiles only."""
    vectors = Words(16, "llvm.x86.avx512bf16.dpbf16ps.512")
    tiled = replace(vectors, tiles=Amx())
    flops = set()
    for words, every, told in (
        (None, True, None),
        (vectors, True, None),
        (tiled, False, None),
        (tiled, True, tiled),
    ):
        graph: Graph = parse(text)
        legalize(graph, lanes=16, words=words, every_layer=every)
        (node,) = graph.nodes
        assert node.attrs.get("words") == told
        cost = node_cost(node)
        assert cost is not None
        flops.add(cost.flops)
    assert len(flops) == 2


RECURRENT = """(float[3,N,40] x) => (float[] y) <float[{d},{g},40] w, float[{d},{g},16] r,
    float[{d},{b}] b> {{
    y = {op}<hidden_size=16{more}>(x, w, r, b)
}}"""
BOTH = ', direction="bidirectional"'


@pytest.mark.parametrize(
    "text",
    [
        RECURRENT.format(op="GRU", d=1, g=48, b=96, more=", linear_before_reset=1"),
        RECURRENT.format(op="LSTM", d=2, g=64, b=128, more=BOTH),
        RECURRENT.format(op="RNN", d=2, g=16, b=32, more=BOTH),
    ],
    ids=["GRU", "LSTM", "RNN"],
)
def test_what_comes_into_a_sequence_is_rounded(text: str, in_tiles: Callable[[bool], None]) -> None:
    """It gives what ONNX Runtime does in float32 of data and weights that are rounded before."""
    in_tiles(True)
    graph = parse(text)
    feeds = random_inputs(graph, {"N": 19}, seed=2)
    model = graphopt.compile(graph, precision="bf16", verify=False)
    together = model.run(feeds)["y"]
    (node,) = graph.nodes
    weights = node.const(1)
    assert weights is not None
    graph.set_input(node, 1, graph.constant(widened(weights)))
    wanted = run_onnxruntime(graph, {"x": widened(feeds["x"])})["y"]
    np.testing.assert_allclose(together, wanted, rtol=1e-5, atol=1e-5)  # sums of 40 near 1
    for rows in (1, 5, 16):
        found = model.run({"x": feeds["x"][:, :rows].copy()})["y"]
        np.testing.assert_array_equal(found, together[:, :, :rows])


def widened(array: np.ndarray) -> np.ndarray:
    """Rounded to bfloat16."""
    return (round_bits(array).astype(np.uint32) << np.uint32(16)).view(np.float32)


@pytest.mark.parametrize(("width", "told"), [(32, True), (31, False)])
def test_which_sequences_are_told(width: int, told: bool) -> None:
    text = RECURRENT.format(op="GRU", d=1, g=48, b=96, more="").replace("40]", f"{width}]")
    words = Words(16, "llvm.x86.avx512bf16.dpbf16ps.512", Amx())
    graph: Graph = parse(text)
    legalize(graph, lanes=16, words=words, every_layer=True)
    (node,) = graph.nodes
    assert ("words" in node.attrs) == told


def test_tiles_have_nothing_to_tune() -> None:
    bytes_, floats = (parse(text) for text in (BYTES, FLOATS))
    target = CpuTarget.parse("sapphirerapids")
    for graph, tiled in ((bytes_, target), (floats, target.computing("bf16"))):
        assert not dict(tuned._tasks(tiled.legalize(graph), (1, 64)))
    assert len(dict(tuned._tasks(CpuTarget.parse("icelake-server").legalize(bytes_), (1, 64)))) == 3
