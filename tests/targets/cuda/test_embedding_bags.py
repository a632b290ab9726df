"""Bags of several tables, and of tables in codes, pooled by one launch, against NumPy."""

from __future__ import annotations

from itertools import pairwise

import gpu_emulator
import numpy as np
import pytest

from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops import embedding_bags, product_embedding_bag, quantized_embedding_bag
from graphopt.ops.product_lookup import product_lookup
from graphopt.ops.quantized_lookup import packed

from .conftest import Feeds, Runner

RNG = np.random.default_rng(7)
ROWS, STARTS = np.array([5, 1, 9]), np.array([0, 5, 6])
TABLE = RNG.standard_normal((15, 20)).astype(np.float32)
B = Sym.named("b")


def bags_of(mode: str, csr: bool) -> Graph:
    graph = Graph(opsets={"": 18})
    offsets = graph.add_input("offsets", TensorType("int64", (3, Sym.named("p") if csr else B)))
    ids = [graph.add_input(f"ids{k}", TensorType("int64", (Sym.named(f"n{k}"),))) for k in range(3)]
    constants = [graph.constant(array) for array in (TABLE, ROWS, STARTS)]
    attrs = {"mode": mode, "include_last_offset": int(csr)}
    node = graph.insert(
        embedding_bags.OP_TYPE, [*constants, offsets, *ids], attrs, domain=embedding_bags.DOMAIN
    )
    graph.set_outputs([node.output], ["pooled"])
    return graph


def feed_of(bags: int, csr: bool) -> Feeds:
    sizes = RNG.integers(0, 4, (3, bags))
    ends = np.concatenate([np.zeros((3, 1), int), np.cumsum(sizes, axis=1)], axis=1)
    ids = {f"ids{k}": RNG.integers(-n, n, ends[k, -1]) for k, n in enumerate(ROWS)}
    return {**ids, "offsets": np.ascontiguousarray(ends if csr else ends[:, :-1])}


def pooled(feed: Feeds, mode: str, csr: bool) -> np.ndarray:
    offsets = feed["offsets"]
    result = np.zeros((offsets.shape[1] - csr, 3, TABLE.shape[1]), np.float32)
    for k, (rows, start) in enumerate(zip(ROWS, STARTS)):
        ids = feed[f"ids{k}"]
        ends = offsets[k] if csr else np.append(offsets[k], len(ids))
        for bag, (first, last) in enumerate(pairwise(ends)):
            if last > first:
                found = TABLE[ids[first:last] % rows + start]
                result[bag, k] = found.sum(0) if mode == "sum" else found.mean(0)
    return result


@pytest.mark.parametrize(("mode", "csr"), [("sum", False), ("mean", True)])
def test_bags_of_several_tables(mode: str, csr: bool, run_model: Runner) -> None:
    feeds = [feed_of(n, csr) for n in (1, 7, 64)]
    for found, feed in zip(run_model(bags_of(mode, csr), *feeds), feeds):
        np.testing.assert_allclose(found["pooled"], pooled(feed, mode, csr), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "bad"), [("ids2", 9), ("ids1", -2), ("offsets", 10**9)])
def test_stray_ids_and_offsets(name: str, bad: int, run_model: Runner) -> None:
    feed = feed_of(30, False)
    feed[name].flat[-1] = bad
    with pytest.raises(gpu_emulator.LaunchError, match=r"IdError.*EmbeddingBags"):
        run_model(bags_of("sum", False), feed)


@pytest.mark.parametrize(("bits", "fixed"), [(8, True), (4, False)])
def test_bags_of_codes(bits: int, fixed: bool, run_model: Runner) -> None:
    low = -(2 ** (bits - 1))
    codes = RNG.integers(low, -low, (15, 24)).astype(np.int8)
    scales = RNG.random(15).astype(np.float16)
    rows = codes * scales.astype(np.float32)[:, None]
    graph, domain = Graph(opsets={"": 18}), quantized_embedding_bag.DOMAIN
    ids = graph.add_input("ids", TensorType("int64", (B, 5) if fixed else (Sym.named("n"),)))
    stored = packed(codes) if bits == 4 else codes
    inputs = [graph.constant(stored), graph.constant(scales), ids]
    feed = {"ids": RNG.integers(-15, 15, (33, 5))}
    expected = rows[feed["ids"]].mean(1)
    if not fixed:
        inputs.append(graph.add_input("offsets", TensorType("int64", (B,))))
        feed = {"ids": feed["ids"].reshape(-1), "offsets": np.arange(0, 165, 5)}
    node = graph.insert(
        quantized_embedding_bag.OP_TYPE, inputs, {"bits": bits, "mode": "mean"}, domain=domain
    )
    graph.set_outputs([node.output], ["pooled"])
    (found,) = run_model(graph, feed)
    np.testing.assert_allclose(found["pooled"], expected, rtol=1e-5, atol=1e-5)


def test_bags_out_of_codebooks(run_model: Runner) -> None:
    """They have no kernel of their own: standard ops look parts up and add them."""
    codes = RNG.integers(0, 256, (15, 4)).astype(np.uint8)
    books = RNG.normal(size=(1024, 4)).astype(np.float16)
    graph = Graph(opsets={"": 18})
    ids = graph.add_input("ids", TensorType("int64", (B, 5)))
    inputs = [graph.constant(codes), graph.constant(books), ids]
    op, domain = product_embedding_bag.OP_TYPE, product_embedding_bag.DOMAIN
    node = graph.insert(op, inputs, {"mode": "mean"}, domain=domain)
    graph.set_outputs([node.output], ["pooled"])
    feed = {"ids": RNG.integers(-15, 15, (33, 5))}
    (found,) = run_model(graph, feed)
    expected = product_lookup(codes, books, feed["ids"]).mean(1)
    np.testing.assert_allclose(found["pooled"], expected, rtol=1e-5, atol=1e-5)
