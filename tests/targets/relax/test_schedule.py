"""Loops of generated kernels: which of them become vectors, and that nothing changes by it."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.targets.cpu.target import CpuTarget
from graphopt.targets.relax import build, lowering
from graphopt.targets.relax.schedule import schedule
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime


def scripts(text: str) -> str:
    graph = CpuTarget.parse("").legalize(parse(text))
    lowered = lowering.lower(graph)
    module = schedule(build.fuse(lowered.module, lowered.emitted)[0])
    return "\n".join(f.script() for name, f in module.functions.items() if name.name_hint != "main")


@pytest.mark.parametrize("width", [4, 8, 24, 32, 48])
def test_arithmetic_on_rows_becomes_vectors(width: int) -> None:
    text = f"g (float[N,{width}] a, float[N,{width}] b) => (float[N,{width}] y) {{ y = Mul(a, b) }}"
    assert "T.vectorized" in scripts(text)
    graph = parse(text)
    for batch in (0, 1, 5):
        feeds = random_inputs(graph, {"N": batch}, seed=0)
        found, expected = Compiled(graph)(feeds)["y"], run_onnxruntime(graph, feeds)["y"]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,32] a, float[32] b) => (float[N,32] y) { y = Add(a, b) }",
        "g (float[N,32] a, float[N,1] b) => (float[N,32] y) { y = Div(a, b) }",
        "g (int64[N,16] a, int64[N,16] b) => (int64[N,16] y) { y = Sub(a, b) }",
    ],
)
def test_operands_may_be_broadcast(text: str) -> None:
    assert "T.vectorized" in scripts(text)
    graph = parse(text)
    feeds = random_inputs(graph, {"N": 7}, seed=0)
    found, expected = Compiled(graph)(feeds)["y"], run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,33] a, float[N,33] b) => (float[N,33] y) { y = Mul(a, b) }",
        "g (float[N] a, float[N] b) => (float[N] y) { y = Mul(a, b) }",
        "g (float[N,32] a) => (float[N,32] y) { y = Sin(a) }",
        "g (float[N,32] a, float[N,32] b) => (bool[N,32] y) { y = Less(a, b) }",
    ],
)
def test_other_loops_are_left_to_llvm(text: str) -> None:
    assert "T.vectorized" not in scripts(text)
