"""Compressed interactions out of factors: which rank, for which inputs, and what stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import graphopt
from graphopt.accuracy.budget import Budget
from graphopt.accuracy.datasets import in_batches
from graphopt.errors import BudgetExceededError
from graphopt.ir.graph import Graph, Node, Value
from graphopt.passes._cp import BilinearLayer, CpFactors, decompose
from graphopt.passes.factorize_tensors import FactorizeTensors, _Into
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.report import Report
from graphopt.testing import (
    Compiled,
    Lavish,
    assert_keeps_outputs,
    assert_unchanged,
    parse,
    run_onnxruntime,
)

pytest.importorskip("tensorly")

LAYER = """(float[N,{h},4] x, float[N,{m},4] y) => (float[N,{k},4] z)
    <float[{pairs},{k}] w, float[{k}] b> {{
    z = graphopt.CompressedInteraction<activation="relu">({inputs}, w, b) }}"""
# Two layers of xDeepFM, half of the first one's maps going to the result at once.
NETWORK = """(float[N,12,8] x) => (float[N] y) <float[144,64] w, float[64] b, float[384,48] v,
    float[48] c, float[80] u, int64[1] last = {2}> {
    p = graphopt.CompressedInteraction<activation="relu">(x, x, w, b)
    h, d = Split<axis=1, num_outputs=2>(p)
    q = graphopt.CompressedInteraction<activation="relu">(h, x, v, c)
    a = Concat<axis=1>(d, q)
    s = ReduceSum<keepdims=0>(a, last)
    y = MatMul(s, u)
}"""


def layer(h: int = 12, m: int = 10, k: int = 48, inputs: str = "x, y") -> str:
    return LAYER.format(h=h, m=m, k=k, pairs=h * m, inputs=inputs)


def interactions(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "graphopt::CompressedInteraction"]


def planted(text: str, rank: int, noise: float = 0.0) -> Graph:
    """`text` with interactions whose weights are sums of `rank` outer products."""
    graph, rng = parse(text), np.random.default_rng(0)
    for node in interactions(graph):
        left, right, weight, _ = node.inputs
        assert left is not None and right is not None and weight is not None
        h, m, k = left.tensor.dims[1], right.tensor.dims[1], weight.tensor.dims[1]
        sides = [rng.normal(size=(size, rank)) for size in (h, m, k)]  # type: ignore[arg-type]
        tensor = np.einsum("hr,mr,kr->hmk", *sides) / (h * rank**0.5)  # type: ignore[operator]
        tensor += noise * tensor.std() * rng.normal(size=tensor.shape)
        weight.const = tensor.reshape(-1, k).astype(np.float32)  # type: ignore[arg-type]
    return graph


SPREAD = 5.0  # about the standard deviation of what planted networks answer


def rows(count: int = 600) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, 12, 8)).astype(np.float32)


def ranks(report: Report) -> list[str]:
    found = next(p for p in report.passes if p.spec.startswith("factorize-tensors"))
    return sorted(what for what, count in found.rewrites.items() for _ in range(count))


@pytest.mark.parametrize(("rank", "found"), [(3, 8), (8, 8), (12, 16)])
def test_the_budget_finds_the_rank(rank: int, found: int) -> None:
    """The answers stay what they were, compiled and portable."""
    graph, report = planted(NETWORK, rank), Report()
    budget = Budget(in_batches({"x": rows()}), 0.01 * SPREAD, "max-error")
    small = graphopt.optimize(graph, passes="O3", budget=budget, report=report)
    assert ranks(report) == [f"CP rank {found}"] * 2
    assert not interactions(small)
    before, after = report.facts["constant_bytes"]
    assert after < 0.5 * before
    feeds = {"x": rows(5)}
    wanted = run_onnxruntime(graph, feeds)["y"]
    for run in (Compiled(small), lambda feeds: run_onnxruntime(small, feeds)):
        # What the budget allows, and weights may have been rounded to 8 bits inside of it.
        np.testing.assert_allclose(run(feeds)["y"], wanted, rtol=0, atol=0.02 * SPREAD)


@pytest.mark.parametrize("inputs", ["x, y", "x, x"])
def test_factors_of_an_exact_rank_lose_nothing(inputs: str) -> None:
    graph = planted(layer(12, 12, 48, inputs), 8)
    feeds = {n: v for n, v in zip("xy", np.random.default_rng(3).normal(size=(2, 9, 12, 4)))}
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    wanted = run_onnxruntime(graph, feeds)["z"]
    taken = Rank(8)
    assert FactorizeTensors().run(graph, PassContext(budget=taken))
    assert not interactions(graph)
    for found in (run_onnxruntime(graph, feeds)["z"], Compiled(graph)(feeds)["z"]):
        # Least squares stop where a round gains 1e-5 of the norm.
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())


def test_nothing_undoes_it() -> None:
    graph = graphopt.optimize(planted(NETWORK, 8), passes="O2")
    budget = Budget(in_batches({"x": rows()}), 0.01 * SPREAD, "max-error")
    steps = "factorize-tensors,fixpoint(cancel-transposes,cse,dce)"
    small = graphopt.optimize(graph, passes=steps, budget=budget)
    # One transpose, of what both layers read; sums take the others back.
    assert [node.op for node in small.nodes].count("Transpose") == 1
    again = graphopt.optimize(small, passes="O2")
    assert sorted(node.op for node in again.nodes) == sorted(node.op for node in small.nodes)


def test_full_rank_is_not_taken_at_a_small_budget() -> None:
    graph = parse(NETWORK)
    spread = run_onnxruntime(graph, {"x": rows()})["y"].std()
    budget = Budget(in_batches({"x": rows()}), 0.01 * spread)
    with pytest.raises(BudgetExceededError, match="nothing was changed"):
        graphopt.optimize(graph, passes="factorize-tensors", budget=budget)
    ctx = PassContext(budget=Rank(8))
    offered = list(FactorizeTensors().propose(graph, ctx))
    assert offered and all(p.expected_error > 0.1 and p.saves > 0 for p in offered)


def test_the_budget_holds_in_the_end() -> None:
    """Whatever is made of a model whose weights are nearly of low rank."""
    graph, report = planted(NETWORK, 8, noise=0.05), Report()
    budget = Budget(in_batches({"x": rows(1200)}), 0.1 * SPREAD)
    small = graphopt.optimize(graph, passes="O3", budget=budget, report=report)
    held = report.facts["compression"]["held_out"]
    assert held["drop"] <= 0.1 * SPREAD
    assert "factorize-tensors" in {p.spec for p in report.passes if p.changed}
    feeds = {"x": rows()[:200]}
    lost = run_onnxruntime(small, feeds)["y"] - run_onnxruntime(graph, feeds)["y"]
    assert 0 < np.abs(lost).mean() < 0.2 * SPREAD


def test_factors_fit_the_inputs() -> None:
    """Left features that are multiples of one another need one product for each right one."""
    rng = np.random.default_rng(0)
    weight, right = rng.normal(size=(10, 6, 16)), rng.normal(size=(400, 6))
    left = rng.normal(size=(400, 1)) @ rng.normal(size=(1, 10))
    assert BilinearLayer.of(weight, left, right).factors(6).error < 1e-2
    free = rng.normal(size=(400, 10))
    assert BilinearLayer.of(weight, free, right).factors(6).error > 0.5


def test_the_bias_makes_up_for_a_shift() -> None:
    """A right feature that is always 1 makes a constant of what one on the left is in the mean."""
    rng = np.random.default_rng(0)
    left, right = rng.normal(3.0, 0.1, size=(500, 8)), np.ones((500, 1))
    fitted = BilinearLayer.of(rng.normal(size=(8, 1, 12)), left, right).factors(1)
    assert np.abs(fitted.shift).max() > 0.1
    assert fitted.error < 0.1


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_what_factors_become(activation: str) -> None:
    graph, rng = parse(layer().replace("relu", activation)), np.random.default_rng(0)
    (node,) = interactions(graph)
    sizes = [(12, 8), (10, 8), (8, 48), (48,)]
    left, right, top, shift = (rng.normal(size=size) for size in sizes)
    bias = node.const(3)
    _Into(node, CpFactors(left, right, top, shift, 0.0)).apply(graph, {node.output: node.output})
    x, y = (rng.normal(size=(5, count, 4)).astype(np.float32) for count in (12, 10))
    sums = np.einsum("nhe,hr->ner", x, left) * np.einsum("nme,mr->ner", y, right)
    wanted = (sums @ top + shift + bias).transpose(0, 2, 1)
    wanted = np.maximum(wanted, 0) if activation == "relu" else wanted
    found = run_onnxruntime(graph, {"x": x, "y": y})["z"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_the_order_of_a_pair_has_no_effect() -> None:
    """What a weight says of i and j, and takes back of j and i, needs no factors."""
    graph, rng = parse(layer(12, 12, 48, "x, x")), np.random.default_rng(0)
    same, top = rng.normal(size=(12, 4)), rng.normal(size=(48, 4))
    tensor = np.einsum("hr,mr,kr->hmk", same, same, top)
    noise = rng.normal(size=tensor.shape)
    tensor += tensor.std() * (noise - noise.swapaxes(0, 1))
    interactions(graph)[0].inputs[2].const = tensor.reshape(144, 48).astype(np.float32)  # type: ignore[union-attr]
    first = next(iter(FactorizeTensors().propose(graph, PassContext(budget=Rank(8)))))
    assert first.what == "CP rank 8" and first.expected_error < 1e-3


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_a_decomposition_is_finite_and_the_same_each_time(rank: int) -> None:
    """Also with more components than the tensor has, than an axis has elements, or without any."""
    rng = np.random.default_rng(0)
    exact = np.einsum("hr,mr,kr->hmk", *(rng.normal(size=(size, 2)) for size in (3, 1, 8)))
    for tensor in (exact, rng.normal(size=(3, 1, 8)), np.zeros((3, 1, 8))):
        factors = decompose(tensor, rank)
        assert all(np.isfinite(factor).all() for factor in factors)
        for factor, again in zip(factors, decompose(tensor, rank)):
            np.testing.assert_array_equal(factor, again)
        if rank > 2:
            restored = np.einsum("hr,mr,kr->hmk", *factors)
            np.testing.assert_allclose(restored, tensor, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (layer(2, 2, 8), None),  # small
        (layer(3, 2, 400), "not be smaller"),
        (layer(5, 5, 100, "x, x"), "as many products"),
        (layer().replace("<float[120,48] w,", "<").replace("y)", "y, float[120,48] w)", 1), None),
    ],
)
def test_left_alone(text: str, reason: str | None) -> None:
    assert_unchanged(FactorizeTensors(), text, reason)


def test_two_sets_of_features_have_more_products() -> None:
    assert FactorizeTensors().run(parse(layer(5, 5, 100)), PassContext(budget=Lavish()))


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "not all numbers"), (np.inf, "not all numbers"), (0, "zeros")]
)
def test_weights_without_factors(value: float, reason: str) -> None:
    graph, ctx = parse(layer()), PassContext(budget=Lavish())
    weight = interactions(graph)[0].inputs[2]
    assert weight is not None and weight.const is not None
    weight.const = weight.const * np.float32(0) if value == 0 else weight.const.copy()
    weight.const[3, 4] = value
    assert not FactorizeTensors().run(graph, ctx)
    assert any(reason in why for _, _, why in ctx.stats.refusals)


def test_one_feature_on_the_left() -> None:
    graph = parse(layer(1, 40, 64))
    assert_keeps_outputs(FactorizeTensors(), graph)
    assert not interactions(graph)


def test_features_that_are_not_all_numbers_are_not_fitted_to() -> None:
    graph = parse(layer())
    assert not list(FactorizeTensors().propose(graph, PassContext(budget=Infinite())))
    zeros = list(FactorizeTensors().propose(graph, PassContext(budget=Dead())))
    assert zeros and zeros[0].expected_error == 0  # features that are always 0 need no products


def test_without_tensorly_nothing_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.passes._cp.find_spec", lambda name: None)
    assert_unchanged(FactorizeTensors(), layer(), "graphopt[tensor]")


class Rank(Lavish):
    """Takes one rank for all layers."""

    def __init__(self, rank: int) -> None:
        self.what = f"CP rank {rank}"

    def choose(self, graph: Graph, proposals: Sequence, share: float = 1.0) -> list:  # type: ignore[override]
        return [p for p in proposals if p.what == self.what]

    def observe(self, graph: Graph, values: Sequence[Value]) -> list[list[np.ndarray]]:
        rng = np.random.default_rng(0)
        return [[rng.normal(size=(200, *value.tensor.dims[1:]))] for value in values]  # type: ignore[misc]


class Infinite(Lavish):
    def observe(self, graph: Graph, values: Sequence[Value]) -> list[list[np.ndarray]]:
        return [[np.full((9, *value.tensor.dims[1:]), np.inf)] for value in values]  # type: ignore[misc]


class Dead(Lavish):
    def observe(self, graph: Graph, values: Sequence[Value]) -> list[list[np.ndarray]]:
        return [[np.zeros((9, *value.tensor.dims[1:]))] for value in values]  # type: ignore[misc]
