"""`graphopt::ProductEmbeddingBag`: its function bodies and kernels against NumPy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.analysis.ids import id_ranges
from graphopt.errors import IdError, InvalidModelError
from graphopt.ir import onnx_io
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops.embedding_bag import EmbeddingBag
from graphopt.ops.product_embedding_bag import DOMAIN, OP_TYPE
from graphopt.ops.product_lookup import product_lookup
from graphopt.testing import Compiled, run_onnxruntime

ROWS = 9
N, B = Sym.named("n"), Sym.named("b")
CLOSE = {"rtol": 1e-6, "atol": 1e-5}  # sums of up to 3 terms in other orders


def graph_of(
    parts: int, width: int, *, fixed: bool = False, book: str = "float16", **attrs: str | int
) -> tuple[Graph, np.ndarray]:
    """One bag over a random table, and the table in full."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (ROWS, parts)).astype(np.uint8)
    books = rng.normal(size=(256 * parts, width)).astype(book)
    graph = Graph(opsets={"": 18})
    ids = graph.add_input("ids", TensorType("int64", (B, 3) if fixed else (N,)))
    inputs = [graph.constant(codes), graph.constant(books), ids]
    if not fixed:
        inputs.append(graph.add_input("offsets", TensorType("int64", (B,))))
    node = graph.insert(OP_TYPE, inputs, attrs, domain=DOMAIN)
    graph.set_outputs([node.output], ["pooled"])
    return graph, product_lookup(codes, books, np.arange(ROWS))


def assert_pools(graph: Graph, feeds: dict[str, np.ndarray], wanted: np.ndarray) -> None:
    np.testing.assert_allclose(Compiled(graph)(feeds)["pooled"], wanted, **CLOSE)
    np.testing.assert_allclose(run_onnxruntime(graph, feeds)["pooled"], wanted, **CLOSE)
    model = onnx_io.to_proto(graph)
    onnx.checker.check_model(model)
    assert [n.op for n in onnx_io.from_proto(model).nodes] == [f"{DOMAIN}::{OP_TYPE}"]


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize(("parts", "width", "csr"), [(1, 4, 0), (8, 8, 1), (5, 3, 0)])
def test_offsets(parts: int, width: int, mode: str, csr: int) -> None:
    graph, table = graph_of(parts, width, mode=mode, include_last_offset=csr)
    ids = np.array([0, 8, -1, 3, 3, -9, 2])
    offsets = np.array([0, 2, 2, 5, *([7] if csr else [])])
    wanted = EmbeddingBag(mode, bool(csr)).pool(table, ids, offsets)  # type: ignore[arg-type]
    assert_pools(graph, {"ids": ids, "offsets": offsets}, wanted)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_of_one_length(mode: str) -> None:
    graph, table = graph_of(4, 4, fixed=True, book="float32", mode=mode)
    ids = np.array([[0, 8, -1], [3, 3, -9]])
    assert_pools(graph, {"ids": ids}, EmbeddingBag(mode).pool(table, ids))  # type: ignore[arg-type]


def test_padding() -> None:
    graph, table = graph_of(4, 4, fixed=True, mode="mean", padding_idx=8, by_id=1)
    ids = np.array([[0, 8, -1], [8, 8, 8]])
    bag = EmbeddingBag("mean", padding_idx=8, by_id=True)
    assert_pools(graph, {"ids": ids}, bag.pool(table, ids))


def test_ids_and_offsets_that_are_out_of_range() -> None:
    graph, table = graph_of(2, 4, mode="sum")
    stray = {"ids": np.array([2, ROWS, 2**62]), "offsets": np.array([0, 1])}
    compiled = Compiled(graph)
    with pytest.raises(IdError, match="out of range"):
        compiled(stray)
    pooled = Compiled(graph, "zero")(stray)["pooled"]
    np.testing.assert_array_equal(pooled, [table[2], np.zeros(8)])
    pooled = Compiled(graph, "clamp")(stray)["pooled"]
    np.testing.assert_allclose(pooled, [table[2], 2 * table[8]], rtol=1e-6)
    with pytest.raises(IdError, match="offsets decrease or leave the ids"):
        compiled({"ids": np.array([2, 1]), "offsets": np.array([0, 5])})


def test_types_that_do_not_fit() -> None:
    graph, _ = graph_of(2, 4, mode="sum")
    (node,) = graph.nodes
    with pytest.raises(InvalidModelError, match="and offsets"):
        graph.insert(OP_TYPE, node.inputs[:3], domain=DOMAIN)
    with pytest.raises(InvalidModelError, match="no codes"):
        graph.insert(OP_TYPE, [node.inputs[1], *node.inputs[1:]], domain=DOMAIN)


def test_what_ids_may_be_is_known() -> None:
    graph, _ = graph_of(2, 4, mode="sum")
    found = id_ranges(graph)
    assert [r.high for r in found["ids"]] == [ROWS]
    assert [r.sorted_axis for r in found["offsets"]] == [0]
