"""Embedding bags on a GPU against their NumPy meaning."""

from __future__ import annotations

import gpu_emulator
import numpy as np
import pytest

from graphopt.errors import UnsupportedOpError
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops.embedding_bag import DOMAIN, OP_TYPE, EmbeddingBag

from .conftest import Runner

ROWS, DIM = 13, 40
RNG = np.random.default_rng(5)
TABLE = RNG.standard_normal((ROWS, DIM)).astype(np.float32)
IDS, OFFSETS = RNG.integers(-ROWS, ROWS, 50), np.array([0, 0, 3, 3, 20, 49])
WEIGHTS = RNG.standard_normal(50).astype(np.float32)


def graph_of(bag: EmbeddingBag, fixed: bool = False, weighted: bool = False) -> Graph:
    graph = Graph(opsets={"": 18})
    n, b, k = (Sym.named(name) for name in "nbk")
    shape = (b, k) if fixed else (n,)
    inputs = [graph.constant(TABLE), graph.add_input("ids", TensorType("int64", shape))]
    inputs.append(None if fixed else graph.add_input("offsets", TensorType("int64", (b,))))
    if weighted:
        inputs.append(graph.add_input("weights", TensorType("float32", shape)))
    node = graph.insert(
        OP_TYPE, inputs[: 2 if fixed and not weighted else 4], bag.attrs, domain=DOMAIN
    )
    graph.set_outputs([node.output], ["pooled"])
    return graph


@pytest.mark.parametrize(
    ("bag", "weighted"),
    [
        (EmbeddingBag("sum"), True),
        (EmbeddingBag("mean", padding_idx=3, empty=-1.0), False),
        (EmbeddingBag("max", include_last_offset=True), False),
    ],
)
def test_bags_of_any_length(bag: EmbeddingBag, weighted: bool, run_model: Runner) -> None:
    end = [50] if bag.include_last_offset else []
    feed = {"ids": IDS, "offsets": np.append(OFFSETS, end).astype(np.int64)}
    if weighted:
        feed["weights"] = WEIGHTS
    (found,) = run_model(graph_of(bag, weighted=weighted), feed)
    expected = bag.pool(TABLE, **feed)
    # Sums of 29 rows at most, in another order.
    np.testing.assert_allclose(found["pooled"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("by_id", [False, True])
def test_rows_of_ids(by_id: bool, run_model: Runner) -> None:
    bag = EmbeddingBag("mean", padding_idx=0, by_id=by_id)
    feeds = [{"ids": IDS.reshape(-1, 5)}, {"ids": IDS.reshape(-1, 50)}]
    for found, feed in zip(run_model(graph_of(bag, fixed=True), *feeds), feeds):
        expected = bag.pool(TABLE, feed["ids"])
        np.testing.assert_allclose(found["pooled"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "offsets"), [([0, 13], [0]), ([0, -14], [0]), ([0, 1], [0, 2, 1]), ([0, 1], [3])]
)
def test_stray_ids_and_offsets(ids: list[int], offsets: list[int], run_model: Runner) -> None:
    feed = {"ids": np.array(ids), "offsets": np.array(offsets)}
    with pytest.raises(gpu_emulator.LaunchError, match=r"IdError.*EmbeddingBag"):
        run_model(graph_of(EmbeddingBag()), feed)


def test_stray_ids_are_rows_of_zeros(run_model: Runner) -> None:
    feed = {"ids": np.array([2, 99, -99, 4]), "offsets": np.array([0, 3])}
    (found,) = run_model(graph_of(EmbeddingBag()), feed, oob="zero")
    np.testing.assert_allclose(found["pooled"], TABLE[[2, 4]], rtol=1e-6)


def computed_bags(fixed: bool) -> Graph:
    """Bags of a table that the model computes, of any number of rows."""
    graph = Graph(opsets={"": 18})
    r, n, k = (Sym.named(name) for name in "rnk")
    x = graph.add_input("x", TensorType("float32", (r, 8)))
    inputs = [graph.insert("Neg", [x]).output]
    inputs.append(graph.add_input("ids", TensorType("int64", (n, k) if fixed else (n,))))
    if not fixed:
        inputs.append(graph.add_input("offsets", TensorType("int64", (k,))))
    node = graph.insert(OP_TYPE, inputs, EmbeddingBag("sum").attrs, domain=DOMAIN)
    graph.set_outputs([node.output], ["pooled"])
    return graph


def test_bags_of_rows_that_are_computed(run_model: Runner) -> None:
    x, ids = np.ascontiguousarray(TABLE[:, :8]), IDS[:48].reshape(-1, 4)
    feeds = [{"x": x, "ids": ids}, {"x": x[:3], "ids": ids % 3}]
    for found, feed in zip(run_model(computed_bags(True), *feeds), feeds):
        np.testing.assert_allclose(found["pooled"], -feed["x"][feed["ids"]].sum(1), rtol=1e-5)
    stray = {"x": x[:3], "ids": np.array([0, 2, 3]), "offsets": np.array([0, 1])}
    with pytest.raises(gpu_emulator.LaunchError, match=r"IdError.*EmbeddingBag"):
        run_model(computed_bags(False), stray)


def test_stray_ids_in_rows_that_are_computed(run_model: Runner) -> None:
    x = np.ascontiguousarray(TABLE[:3, :8])
    feed = {"x": x, "ids": np.array([1, 9, -9]), "offsets": np.array([0, 2])}
    none = {**feed, "x": x[:0]}
    found, empty = run_model(computed_bags(False), feed, none, oob="zero")
    np.testing.assert_array_equal(found["pooled"], [-x[1], 0 * x[0]])
    assert not empty["pooled"].any()
    (found,) = run_model(computed_bags(False), feed, oob="clamp")
    np.testing.assert_allclose(found["pooled"], [-x[1] - x[2], -x[0]], rtol=1e-6)
    with pytest.raises(gpu_emulator.LaunchError, match=r"IdError.*EmbeddingBag"):
        run_model(computed_bags(False), none, oob="clamp")  # no row is the nearest


def test_padding_in_rows_that_are_computed_is_refused(run_model: Runner) -> None:
    graph = computed_bags(True)
    graph.set_attr(list(graph.nodes)[-1], "padding_idx", 0)
    with pytest.raises(UnsupportedOpError, match="size of its table"):
        run_model(graph, {})
