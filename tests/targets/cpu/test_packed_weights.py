"""Weights stored in few bits reach the kernels of layers in full."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir.graph import Graph
from graphopt.rewrite import RewriteStats, rewrite
from graphopt.targets.cpu.packed_weights import dequantize_to_weights
from graphopt.testing import parse, random_inputs, run_compiled, run_onnxruntime

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
