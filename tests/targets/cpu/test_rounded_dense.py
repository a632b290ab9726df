"""Layers that multiply bfloat16 hand rounded rows to each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import graphopt
from graphopt.ir.graph import Graph, Node
from graphopt.machine import host_features
from graphopt.rewrite import NoMatch
from graphopt.targets.cpu import DOMAIN, rounded_dense
from graphopt.targets.cpu.kernels.amx import Amx
from graphopt.targets.cpu.kernels.bfloat16 import Words, words_for
from graphopt.targets.cpu.legalize import legalize
from graphopt.testing import parse, random_inputs

CHAIN = """g (float[N,40] x) => (float[N,33] y) <
    float[40,70] u, float[70] a, float[70,48] v, float[48,33] w> {
    h = Gemm(x, u, a)
    r = Relu(h)
    k = MatMul(r, v)
    s = Sigmoid(k)
    y = MatMul(s, w)
}"""
LAST = CHAIN.index("y = MatMul")


def layers(text: str) -> list[Node]:
    graph: Graph = parse(text)
    legalize(graph, lanes=16, words=words_for({"avx512_bf16"}, 16), every_layer=True)
    return [node for node in graph.nodes if node.op == f"{DOMAIN}::Dense"]


def given(text: str) -> list[str]:
    return [layer.output.dtype for layer in layers(text)]


def test_words_pass_from_layer_to_layer() -> None:
    assert given(CHAIN) == ["int32", "int32", "float32"]
    assert [layer.output.tensor.dims[-1] for layer in layers(CHAIN)] == [40, 24, 33]
    shared = (
        CHAIN[:LAST] + "a2 = MatMul(s, w)\n b2 = Relu(a2)\n c2 = MatMul(s, w)\n y = Add(b2, c2) }"
    )
    assert given(shared)[:2] == ["int32", "int32"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (CHAIN.replace("(float[N,33] y)", "(float[N,33] y, float[N,48] s)"), "it is an output"),
        (CHAIN[:LAST] + "a2 = MatMul(s, w)\n o = ReduceSum<keepdims=0>(s)\n y = Add(a2, o) }",
         "others read it as floats"),
        (CHAIN.replace("48,33] w", "48,3] w").replace("N,33]", "N,3]"), "the next is too narrow"),
        (CHAIN.replace("48,33] w", "48,48] w").replace("y = MatMul(s, w)",
         "m = MatMul(s, w)\n y = Add(m, s)").replace("N,33]", "N,48]"), "the next adds it, too"),
    ],
)  # fmt: skip
def test_layers_give_floats(text: str, why: str) -> None:
    assert given(text)[:2] == ["int32", "float32"], why


def test_attention_takes_floats() -> None:
    """It multiplies by tiles, and rounds by itself."""
    graph: Graph = parse("""g (float[N,20,64] x) => (float[N,20,64] y) <
        float[64,64] q, float[64,64] k, float[64,64] v> {
        a = MatMul(x, q)
        b = MatMul(x, k)
        c = MatMul(x, v)
        y = graphopt.Attention<heads=1, dim=64, scale=0.125>(a, b, c)
    }""")
    words = Words(16, "llvm.x86.avx512bf16.dpbf16ps.512", Amx())
    legalize(graph, lanes=16, words=words, every_layer=True)
    *dense, attention = graph.nodes
    assert all(node.attrs.get("words") == words for node in graph.nodes)
    assert [node.output.dtype for node in dense] == ["float32"] * len(dense)
    assert [value.dtype for value in attention.inputs if value] == ["float32"] * 3


@pytest.mark.skipif("avx512_bf16" not in host_features(), reason="this CPU lacks AVX512-BF16")
@pytest.mark.parametrize("rank", [2, 3])
def test_the_same_bits_as_through_floats(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = parse(CHAIN if rank == 2 else CHAIN.replace("Gemm(x, u, a)", "MatMul(x, u)")
        .replace(" float[70] a,", "").replace("[N,40] x", "[N,3,40] x")
        .replace("[N,33] y", "[N,3,33] y"))  # fmt: skip
    never = replace(rounded_dense.floats_to_words, build=lambda rw, node: NoMatch(""))
    handed = graphopt.compile(graph, precision="bf16", verify=False)
    monkeypatch.setattr(rounded_dense, "floats_to_words", never)
    apart = graphopt.compile(graph, precision="bf16", verify=False)
    for rows in (1, 7, 33):
        feeds = random_inputs(graph, {"N": rows}, seed=rows)
        found, expected = handed.run(feeds)["y"], apart.run(feeds)["y"]
        assert expected.any()
        np.testing.assert_array_equal(found, expected)
