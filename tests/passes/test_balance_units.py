"""Hidden units scaled to the size of their weights, with the same bits of the answers."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir.graph import Graph
from graphopt.passes._calibration import CodeRange
from graphopt.passes.balance_units import BalanceUnits
from graphopt.pipeline.base import PassContext
from graphopt.testing import (
    Lavish,
    assert_keeps_outputs,
    assert_unchanged,
    dump,
    parse,
    random_inputs,
    run_onnxruntime,
)

LAYERS = """(float[N,8] x) => (float[N,3] y)
    <float[8,16] w, float[16] b, float[12,16] v, float[12] c, float[12,3] u> {
    h = Gemm(x, w, b)
    r = Relu(h)
    g = Gemm<transB=1, alpha=0.5, beta=2.0>(r, v, c)
    l = LeakyRelu(g)
    y = MatMul(l, u)
}"""


def unbalanced(text: str = LAYERS) -> Graph:
    """With hidden units whose sizes are a thousand times apart."""
    graph = parse(text)
    sizes = np.exp(np.random.default_rng(0).uniform(-3.5, 3.5, 16)).astype(np.float32)
    for value in graph.constants():
        if value.const is not None and value.name in ("w", "b"):
            value.const = value.const * sizes
    return graph


def test_answers_keep_their_bits() -> None:
    for text in (LAYERS, LAYERS.replace("(x, w, b)", "(x, w)").replace(" float[16] b,", "")):
        assert_keeps_outputs(BalanceUnits(), unbalanced(text), sizes={"N": 50})


def test_units_become_alike() -> None:
    graph = unbalanced()
    before = dump(graph)
    assert BalanceUnits().run(graph, PassContext(budget=Lavish()))
    assert dump(graph) == before  # but for the weights
    hidden = next(node for node in graph.nodes if node.op == "Relu").output
    (rows,) = Lavish().observe(graph, [hidden])[0]
    largest = np.abs(rows).max(axis=0)
    weights = np.abs(next(v.const for v in graph.constants() if v.rank == 2 and v.shape[0] == 12))
    fires = largest > 0
    ratio = np.log2(largest[fires] / weights.max(axis=0)[fires])
    assert np.abs(ratio).max() <= 1


def test_less_is_lost_in_8_bits() -> None:
    """In the outputs that the next layer makes of units which one range of codes has rounded."""
    lost = []
    for balanced in (False, True):
        graph = unbalanced()
        if balanced:
            BalanceUnits().run(graph, PassContext(budget=Lavish()))
        second = [node for node in graph.nodes if node.op == "Gemm"][1]
        units = Lavish().observe(graph, [second.inputs[0]])[0]  # type: ignore[list-item]
        weight = second.const(1)
        assert weight is not None
        steps = np.abs(weight).max(axis=1, keepdims=True) / 127
        stored = np.rint(weight / steps) * steps
        found = CodeRange.of(units)[0].rounded(units[0]) @ stored.T
        lost.append(np.abs(found - units[0] @ weight.T).mean())
    assert lost[1] < 0.5 * lost[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("Relu(h)", "Tanh(h)"), "not the same at every scale"),
        (("r = Relu(h)", "a = Add(h, b) r = Relu(a)"), "not the same at every scale"),
        (("x, w, b)\n", "x, w, b) k = MatMul(x, w) "), None),
    ],
)
def test_left_alone(change: tuple[str, str], reason: str | None) -> None:
    text = """(float[N,8] x) => (float[N,3] y) <float[8,16] w, float[16] b, float[16,3] u> {
        h = Gemm(x, w, b)
        r = Relu(h)
        y = MatMul(r, u)
    }""".replace(*change)
    if reason is None:
        text = text.replace("y = MatMul(r, u)", "o = MatMul(r, u) p = MatMul(k, u) y = Add(o, p)")
        reason = "also read elsewhere"
    assert_unchanged(BalanceUnits(), text, reason)


def test_units_that_never_fire_stay() -> None:
    graph = parse("""(float[N,2] x) => (float[N,1] y)
        <float[2,2] w = {0,0,0,0}, float[2] b = {-1,-1}, float[2,1] v = {100,0}> {
        h = Gemm(x, w, b)
        r = Relu(h)
        y = MatMul(r, v)
    }""")
    assert not BalanceUnits().run(graph, PassContext(budget=Lavish()))
    assert np.isfinite(run_onnxruntime(graph, random_inputs(graph))["y"]).all()
    assert not BalanceUnits().run(graph, PassContext())
