"""Units and columns that no answer depends on: which are found, and which must stay."""

from __future__ import annotations

import numpy as np
import pytest

import graphopt
from graphopt.ir.graph import Graph, Value
from graphopt.passes.prune_dead_units import PruneDeadUnits
from graphopt.pipeline.base import PassContext
from graphopt.testing import assert_keeps_outputs, assert_unchanged, parse

MODEL = """(int64[N] ids, float[N,3] x) => (float[N,2] y)
<float[20,4] t, float[3,4] u, float[4,8] w, float[8] b, float[8,2] v, float[2] c> {
    p = Gather<axis=0>(t, ids)
    q = MatMul(x, u)
    s = Sigmoid(q)
    r = Mul(p, s)
    h = Gemm(r, w, b)
    a = Relu(h)
    y = Gemm(a, v, c)
}"""
JOINED = """(int64[N] ids, float[N,3] x) => (float[N,2] y)
<float[20,4] t, float[7,2] w, float[2] b> {
    p = Gather<axis=0>(t, ids)
    j = Concat<axis=1>(p, x)
    y = Gemm(j, w, b)
}"""


def constant(graph: Graph, *shape: int) -> Value:
    return next(v for v in graph.constants() if v.shape == shape)


def changed(text: str, weights: dict[tuple[int, ...], np.ndarray]) -> Graph:
    """`text` with some weights, by shape, set."""
    graph = parse(text)
    for shape, array in weights.items():
        constant(graph, *shape).const = array.astype(np.float32)
    return graph


def units(graph: Graph) -> int:
    return max(n.output.tensor.dims[-1] for n in graph.nodes if n.op == "Relu")  # type: ignore


def with_bias(low: list[int], value: float) -> Graph:
    """The model with a table in [0, 1], and so a hidden layer of known bounds."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(4, 8)), rng.random(8)
    bias[low] = value
    return changed(MODEL, {(20, 4): rng.random((20, 4)), (4, 8): weight, (8,): bias})


def test_units_whose_activation_cannot_fire() -> None:
    graph = with_bias([1, 5, 7], -20.0)
    assert_keeps_outputs(PruneDeadUnits(), graph)
    assert units(graph) == 5


def test_a_unit_that_can_just_fire_stays() -> None:
    """Bounds are met: the inputs are 0 or 1, and only one of all pairs makes the unit fire."""
    table = np.zeros((20, 4))
    table[7] = 1
    weight = np.ones((4, 8))
    graph = changed(MODEL, {(20, 4): table, (4, 8): weight, (8,): np.full(8, -3.9)})
    assert not PruneDeadUnits().run(graph, PassContext())
    graph = changed(MODEL, {(20, 4): table, (4, 8): weight, (8,): np.full(8, -4.1)})
    assert PruneDeadUnits().run(graph, PassContext())


def test_units_without_weights_are_one_number() -> None:
    """What they give goes into the next layer's bias, be it zero or not."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 8))
    weight[:, [0, 3]] = 0
    bias = rng.random(8)
    bias[0], bias[3] = 2.0, -2.0
    graph = changed(MODEL, {(4, 8): weight, (8,): bias})
    assert_keeps_outputs(PruneDeadUnits(), graph)
    assert units(graph) == 6


def test_one_unit_stays() -> None:
    graph = with_bias(list(range(8)), -50.0)
    assert_keeps_outputs(PruneDeadUnits(), graph)
    assert units(graph) == 1


def test_operands_that_meet_zeros_go_with_their_table() -> None:
    weight = np.random.default_rng(0).normal(size=(7, 2))
    weight[:4] = 0
    graph = changed(JOINED, {(7, 2): weight})
    assert_keeps_outputs(PruneDeadUnits(), graph)
    assert [n.op for n in graph.nodes] == ["Gemm"]
    assert all(v.shape != (20, 4) for v in graph.constants())


def test_a_column_that_is_used_keeps_its_operand() -> None:
    weight = np.random.default_rng(0).normal(size=(7, 2))
    weight[:3] = 0
    assert not PruneDeadUnits().run(changed(JOINED, {(7, 2): weight}), PassContext())


@pytest.mark.parametrize("op", ["Gemm(j, w, b)", "MatMul(j, w)"])
def test_constant_columns_go_into_the_bias(op: str) -> None:
    text = JOINED.replace("Gemm(j, w, b)", op)
    graph = changed(text, {(20, 4): np.tile([1, 2, -3, 0.5], (20, 1))})
    assert_keeps_outputs(PruneDeadUnits(), graph)
    assert "Gather" not in {n.op for n in graph.nodes}


@pytest.mark.parametrize(
    "text",
    [
        JOINED,
        JOINED.replace("axis=1", "axis=0").replace("float[3", "float[4").replace("N,3", "N,4")
        .replace("[7,2]", "[4,2]"),
        MODEL.replace("Relu", "Tanh"),
        MODEL.replace("y)", "y, float[N,8] h)"),
        MODEL.replace("Relu(h)", "Relu(h)  z = Exp(a)").replace("y)", "y, float[N,8] z)"),
    ],
)  # fmt: skip
def test_left_alone(text: str) -> None:
    assert_unchanged(PruneDeadUnits(), text)


def test_weights_that_are_not_finite() -> None:
    weight = np.zeros((7, 2))
    weight[4:] = 1
    table = np.ones((20, 4))
    weight[1] = np.inf
    graph = changed(JOINED, {(7, 2): weight, (20, 4): table})
    ctx = PassContext()
    assert not PruneDeadUnits().run(graph, ctx)
    assert any("not finite" in why for _, _, why in ctx.stats.refusals)


def test_what_is_dead_goes_by_default() -> None:
    found = graphopt.optimize(with_bias([1, 5, 7], -20.0))
    assert units(found) == 5
