"""Cosines of towers are one kernel, however they are written."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.legalize import legalize
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

TEXT = """(float[N,{a}] a, float[N,{b}] b, float[N,{b}] c) => (float[] y) <
    int64[1] last = {{-1}}, float least = {{0.5}}, float much = {{2}}, int64[1] first = {{0}}> {{
    p = Mul(a, b) {body} }}"""
CLIPPED = """s = ReduceSum(p, last) m = ReduceL2(a, last) n = ReduceL2(b, last)
    u = Clip(m, least) v = Clip(n, least) q = Div(s, u) y = Div(q, v)"""
JOINT = """s = ReduceSum<keepdims={0}>(p, last) aa = Mul(a, a) bb = Mul(b, b)
    m = ReduceSum<keepdims={0}>(aa, last) n = ReduceSum<keepdims={0}>(bb, last)
    mn = Mul(m, n) r = Sqrt(mn) d = Max(r, least) y = Div(s, d)"""


def kernels(text: str) -> list[str]:
    graph = parse(text)
    legalize(graph, lanes=8)
    return [node.op_type for node in graph.nodes if node.domain == DOMAIN]


@pytest.mark.parametrize("body", [CLIPPED, JOINT.format(0), JOINT.format(1)])
@pytest.mark.parametrize(
    ("a", "b"), [("32", "32"), ("5", "5"), ("1,19", "7,19"), ("3,8", "1,8"), ("2,1", "2,1")]
)
def test_forms(a: str, b: str, body: str) -> None:
    text = TEXT.format(a=a, b=b, body=body)
    assert kernels(text) == ["Cosine"]
    graph = parse(text)
    run = Compiled(graph)
    for size in (0, 1, 5):
        feeds = random_inputs(graph, {"N": size})
        for value in feeds.values():
            value[size // 2 :] *= 0.01  # where the norms are less than the least
        np.testing.assert_allclose(
            run(feeds)["y"], run_onnxruntime(graph, feeds)["y"], rtol=1e-5, atol=1e-6
        )  # sums of up to 32 products in another order


@pytest.mark.parametrize(
    ("a", "b", "body"),
    [
        ("4", "4", CLIPPED.replace("ReduceL2(b", "ReduceL2(c")),
        ("4", "4", CLIPPED.replace("Clip(n, least)", "Clip(n, much)")),
        ("4", "4", CLIPPED.replace("Clip(n, least)", "Clip(n, least, much)")),
        ("4", "4", CLIPPED.replace("ReduceL2(b, last)", "ReduceL2(b, first)")),
        ("4", "4", CLIPPED.replace("ReduceL2(b, last)", "ReduceL1(b, last)")),
        ("4", "4", CLIPPED.replace("ReduceSum(p, last)", "ReduceSum(p, first)")),
        ("4", "4", JOINT.format(1).replace("Mul(b, b)", "Mul(b, c)")),
        ("4", "4", JOINT.format(0).replace("n = ReduceSum<keepdims=0>", "n = ReduceSum")),
        ("4", "4", JOINT.format(1).replace("Max(r, least)", "Max(r, m)")),
        ("2,3,4", "2,3,4", CLIPPED),
        ("D", "D", CLIPPED),
    ],
)  # fmt: skip
def test_others_stay(a: str, b: str, body: str) -> None:
    assert kernels(TEXT.format(a=a, b=b, body=body)) == []
