"""Fused interactions on a GPU against the function bodies that define them, in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir.dims import Sym
from graphopt.ir.graph import Attr, Graph
from graphopt.ir.types import TensorType
from graphopt.ops import (
    attention,
    bi_interaction,
    compressed_interaction,
    cross_network,
    dot_interaction,
    pair_products,
)
from graphopt.targets.base import Precision
from graphopt.targets.cuda.kernels import tiles
from graphopt.testing import run_onnxruntime

from .conftest import Feeds, Runner

N, T, S = (Sym.named(name) for name in "nts")
RNG = np.random.default_rng(2)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def check(graph: Graph, feeds: list[Feeds], run_model: Runner) -> list[str]:
    """The kernels give what the bodies do; returns the source."""
    sources: list[str] = []

    def keep(source: str) -> str:
        sources.append(source)
        return source

    for found, feed in zip(run_model(graph, *feeds, edit=keep), feeds):
        expected = run_onnxruntime(graph, feed)["y"]
        # Sums of at most 200 products, in another order.
        np.testing.assert_allclose(found["y"], expected, rtol=2e-5, atol=2e-5)
    return sources


@pytest.mark.parametrize(
    ("count", "dim", "beside"), [(27, 16, 5), (5, 33, 0), (9, 130, 128), (2, 3, 0)]
)
def test_dot_products(count: int, dim: int, beside: int, run_model: Runner) -> None:
    graph, domain = Graph(opsets={"": 18}), dot_interaction.DOMAIN
    features = graph.add_input("x", TensorType("float32", (N, count, dim)))
    inputs = [graph.insert("Neg", [features]).output]
    if beside:
        inputs.append(graph.add_input("beside", TensorType("float32", (N, beside))))
    pairs = [i * count + j for i in range(count) for j in range(i)] + [count + 1, 1, 0]
    node = graph.insert(dot_interaction.OP_TYPE, inputs, {"pairs": pairs}, domain=domain)
    graph.set_outputs([node.output], ["y"])
    feeds = [{"x": normal(n, count, dim)} for n in (1, 7, 0)]
    if beside:
        feeds = [{**feed, "beside": normal(len(feed["x"]), beside)} for feed in feeds]
    (source,) = check(graph, feeds, run_model)
    assert "dotinteraction_kernel" in source


def test_vectors_too_many_for_a_block(run_model: Runner) -> None:
    graph, domain = Graph(opsets={"": 18}), dot_interaction.DOMAIN
    features = graph.add_input("x", TensorType("float32", (N, 110, 4)))
    node = graph.insert(dot_interaction.OP_TYPE, [features], {"pairs": [1, 300]}, domain=domain)
    graph.set_outputs([node.output], ["y"])
    (source,) = check(graph, [{"x": normal(2, 110, 4)}], run_model)
    assert "dotinteraction_kernel" not in source


@pytest.mark.parametrize(("pooled", "dim"), [(0, 24), (1, 40)])
def test_factorization_machine(pooled: int, dim: int, run_model: Runner) -> None:
    graph, domain = Graph(opsets={"": 18}), bi_interaction.DOMAIN
    features = graph.add_input("x", TensorType("float32", (N, 6, dim)))
    attrs = {"pooled": pooled, "scale": 0.5}
    node = graph.insert(bi_interaction.OP_TYPE, [features], attrs, domain=domain)
    graph.set_outputs([node.output], ["y"])
    check(graph, [{"x": normal(n, 6, dim)} for n in (1, 7, 64, 0)], run_model)


@pytest.mark.parametrize("weighted", [False, True])
def test_pair_products(weighted: bool, run_model: Runner) -> None:
    graph, domain, dim = Graph(opsets={"": 18}), pair_products.DOMAIN, 24
    inputs = [graph.add_input("x", TensorType("float32", (N, 6, dim)))]
    pairs = [6 * i + j for i in range(6) for j in range(i, 6)]
    attrs: dict[str, Attr] = {"pairs": pairs}
    if weighted:
        inputs.append(graph.constant(normal(7, dim, dim)))
        attrs["matrices"] = [p % 7 for p in pairs]
    node = graph.insert(pair_products.OP_TYPE, inputs, attrs, domain=domain)
    graph.set_outputs([node.output], ["y"])
    (source,) = check(graph, [{"x": normal(n, 6, dim)} for n in (1, 7, 64, 0)], run_model)
    assert "pairproducts_kernel" in source


def test_cross_network(run_model: Runner) -> None:
    graph, domain = Graph(opsets={"": 18}), cross_network.DOMAIN
    x = graph.add_input("x", TensorType("float32", (N, 70)))
    constants = [graph.constant(a) for a in (normal(70, 3) * 0.1, normal(3), normal(70))]
    node = graph.insert(cross_network.OP_TYPE, [x, *constants], domain=domain)
    graph.set_outputs([node.output], ["y"])
    check(graph, [{"x": normal(n, 70)} for n in (1, 7, 64, 0)], run_model)


def compressed(same: bool, activation: str, maps: int) -> Graph:
    """Of 9 and 8 features of 6 numbers, or of 9 with themselves."""
    graph, domain = Graph(opsets={"": 18}), compressed_interaction.DOMAIN
    left = graph.add_input("x", TensorType("float32", (N, 9, 6)))
    right = left if same else graph.add_input("y", TensorType("float32", (N, 8, 6)))
    pairs = 81 if same else 72
    constants = [graph.constant(array) for array in (normal(pairs, maps), normal(maps))]
    attrs = {"activation": activation}
    node = graph.insert(
        compressed_interaction.OP_TYPE, [left, right, *constants], attrs, domain=domain
    )
    graph.set_outputs([node.output], ["y0"])
    return graph


@pytest.mark.parametrize(
    ("same", "activation", "maps", "precision"),
    [
        (True, "relu", 37, "fp32"),
        (False, "none", 70, "fp32"),
        (False, "relu", 5, "tf32x3"),
        (True, "none", 20, "bf16"),
    ],
)
def test_compressed_interaction(
    same: bool, activation: str, maps: int, precision: Precision, run_model: Runner
) -> None:
    graph, sources = compressed(same, activation, maps), []
    feeds = [{"x": normal(n, 9, 6), "y": normal(n, 8, 6)} for n in (1, 7, 40, 0)]
    feeds = [{k: v for k, v in feed.items() if k == "x" or not same} for feed in feeds]
    found = run_model(graph, *feeds, precision=precision, edit=lambda s: sources.append(s) or s)
    for results, feed in zip(found, feeds, strict=True):
        expected = run_onnxruntime(graph, feed)["y0"]
        # Sums of at most 81 products, whose factors have 11 bits in bf16, which is tf32 here.
        atol = 5e-2 if precision == "bf16" else 5e-5
        np.testing.assert_allclose(results["y0"], expected, rtol=5e-5, atol=atol)
    assert sources[0].count("graphopt::products_tile<") == 2
    assert sources[0].count('extern "C" __global__') == 4  # one op, two sizes of tiles


def test_compressed_interaction_of_many_rows(
    run_model: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_BLOCKS", 1)
    graph, feeds = compressed(False, "none", 37), [{"x": normal(30, 9, 6), "y": normal(30, 8, 6)}]
    (found,) = run_model(graph, *feeds)
    expected = run_onnxruntime(graph, feeds[0])["y0"]
    np.testing.assert_allclose(found["y0"], expected, rtol=5e-5, atol=5e-5)


def attention_of(biased: tuple[bool, ...], what: attention.Attention, width: int) -> Graph:
    graph = Graph(opsets={"": 18})
    shapes = [(N, T, width), (N, S, width), (N, S, width)]
    inputs = [graph.add_input(n, TensorType("float32", s)) for n, s in zip("qkv", shapes)]
    if biased:
        full = (N, what.heads, T, S)
        shape = tuple(size if kept else 1 for size, kept in zip(full, biased))
        inputs.append(graph.add_input("bias", TensorType("float32", shape)))
    node = graph.insert(attention.OP_TYPE, inputs, what.attrs, domain=attention.DOMAIN)
    graph.set_outputs([node.output], ["y"])
    return graph


@pytest.mark.parametrize(
    ("biased", "what", "width"),
    [
        ((), attention.Attention(2, 8, 0.3), 16),
        ((True, False, False, True), attention.Attention(2, 8, 0.3, (16, 8, 0)), 32),
        ((False, True, True, True), attention.Attention(1, 37, 1.0), 37),
        ((True, True, False, True), attention.Attention(2, 4, 0.3, guarded=True), 8),
    ],
)
def test_attention(
    biased: tuple[bool, ...], what: attention.Attention, width: int, run_model: Runner
) -> None:
    feeds = []
    for n, t, s in ((1, 1, 1), (3, 5, 70)):
        feed = {"q": normal(n, t, width), "k": normal(n, s, width), "v": normal(n, s, width)}
        if biased:
            shape = [size if kept else 1 for size, kept in zip((n, what.heads, t, s), biased)]
            bias = normal(*shape)
            bias[..., : s // 2] = -np.inf  # more keys than a warp has threads
            if what.guarded:
                bias[0, 0] = -np.inf
            feed["bias"] = bias
        feeds.append(feed)
    check(attention_of(biased, what, width), feeds, run_model)


def test_attention_of_scores_one_by_one(run_model: Runner) -> None:
    """First with a bias and a factor, then of the result with a factor alone."""
    sizes = {"q": (N, T, 16), "k": (N, S, 16), "v": (N, S, 16)}
    sizes |= {"bias": (N, 1, T, S), "factor": (1, 1, T, S), "others": (N, 2, 1, S)}
    graph = Graph(opsets={"": 18})
    given = {name: graph.add_input(name, TensorType("float32", s)) for name, s in sizes.items()}
    operands = [given[name] for name in ("q", "k", "v", "bias", "factor")]
    what = attention.Attention(2, 8, 0.3, activation="silu")
    first = graph.insert(attention.OP_TYPE, operands, what.attrs, domain=attention.DOMAIN)
    operands = [first.output, given["k"], given["v"], None, given["others"]]
    what = attention.Attention(2, 8, 0.01, activation="relu")
    second = graph.insert(attention.OP_TYPE, operands, what.attrs, domain=attention.DOMAIN)
    graph.set_outputs([second.output], ["y"])
    feeds = []
    for n, t, s in ((1, 1, 1), (3, 5, 70)):
        known = {N: n, T: t, S: s}
        feeds.append({k: normal(*(known.get(d, d) for d in dims)) for k, dims in sizes.items()})
    check(graph, feeds, run_model)
