"""`graphopt::QuantizedEmbeddingBag`: its function bodies and kernels against NumPy."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.errors import IdError, InvalidModelError
from graphopt.ir import onnx_io
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops.embedding_bag import EmbeddingBag
from graphopt.ops.quantized_embedding_bag import DOMAIN, OP_TYPE
from graphopt.ops.quantized_lookup import packed
from graphopt.testing import Compiled, run_onnxruntime

ROWS = 9
N, B = Sym.named("n"), Sym.named("b")


def graph_of(
    bits: int, dim: int, mode: str = "sum", *, csr: bool = False, fixed: bool = False
) -> tuple[Graph, np.ndarray]:
    """One bag over a random table, and the table in full."""
    rng = np.random.default_rng(0)
    low = -(2 ** (bits - 1))
    codes = rng.integers(low, -low, (ROWS, dim)).astype(np.int8)
    scales = rng.random(ROWS).astype(np.float16)
    graph = Graph(opsets={"": 18})
    ids = graph.add_input("ids", TensorType("int64", (B, 3) if fixed else (N,)))
    inputs = [graph.constant(packed(codes) if bits == 4 else codes), graph.constant(scales), ids]
    if not fixed:
        inputs.append(graph.add_input("offsets", TensorType("int64", (B,))))
    attrs = {"bits": bits, "mode": mode, **({"include_last_offset": 1} if csr else {})}
    node = graph.insert(OP_TYPE, inputs, attrs, domain=DOMAIN)
    graph.set_outputs([node.output], ["pooled"])
    return graph, codes.astype(np.float32) * scales.astype(np.float32)[:, None]


@pytest.mark.parametrize("csr", [False, True])
@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize(("bits", "dim"), [(8, 5), (8, 16), (8, 40), (4, 6), (4, 64)])
def test_offsets(bits: int, dim: int, mode: str, csr: bool) -> None:
    graph, table = graph_of(bits, dim, mode, csr=csr)
    ids = np.array([0, 8, -1, 3, 3, -9, 2])
    offsets = np.array([0, 2, 2, 5, *([7] if csr else [])])
    feeds = {"ids": ids, "offsets": offsets}
    wanted = EmbeddingBag(mode, csr).pool(table, ids, offsets)  # type: ignore[arg-type]
    # Sums of up to 3 terms in other orders.
    close = {"rtol": 1e-6, "atol": 1e-6 * np.abs(table).max()}
    np.testing.assert_allclose(Compiled(graph)(feeds)["pooled"], wanted, **close)
    np.testing.assert_allclose(run_onnxruntime(graph, feeds)["pooled"], wanted, **close)
    onnx.checker.check_model(onnx_io.to_proto(graph))


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("bits", [8, 4])
def test_bags_of_one_length(bits: int, mode: str) -> None:
    graph, table = graph_of(bits, 24, mode, fixed=True)
    feeds = {"ids": np.array([[0, 8, -1], [3, 3, -9]])}
    wanted = EmbeddingBag(mode).pool(table, feeds["ids"])  # type: ignore[arg-type]
    close = {"rtol": 1e-6, "atol": 1e-6 * np.abs(table).max()}
    np.testing.assert_allclose(Compiled(graph)(feeds)["pooled"], wanted, **close)
    np.testing.assert_allclose(run_onnxruntime(graph, feeds)["pooled"], wanted, **close)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("bits", [8, 4])
def test_padding(bits: int, mode: str) -> None:
    graph, table = graph_of(bits, 24, mode, fixed=True)
    next(iter(graph.nodes)).attrs.update(padding_idx=8, by_id=1)
    feeds = {"ids": np.array([[0, 8, -1], [8, 8, 8]])}
    bag = EmbeddingBag(mode, padding_idx=8, by_id=True)  # type: ignore[arg-type]
    close = {"rtol": 1e-6, "atol": 1e-6 * np.abs(table).max()}
    wanted = bag.pool(table, feeds["ids"])
    np.testing.assert_allclose(Compiled(graph)(feeds)["pooled"], wanted, **close)
    np.testing.assert_allclose(run_onnxruntime(graph, feeds)["pooled"], wanted, **close)
    onnx.checker.check_model(onnx_io.to_proto(graph))


@pytest.mark.parametrize("bits", [8, 4])
def test_ids_and_offsets_that_are_out_of_range(bits: int) -> None:
    graph, table = graph_of(bits, 8)
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
    graph, _ = graph_of(8, 8)
    (node,) = graph.nodes
    with pytest.raises(InvalidModelError, match="and offsets"):
        graph.insert(OP_TYPE, node.inputs[:3], {"bits": 8}, domain=DOMAIN)
    with pytest.raises(InvalidModelError, match="mode is sum or mean"):
        graph.insert(OP_TYPE, node.inputs, {"bits": 8, "mode": "max"}, domain=DOMAIN)
    with pytest.raises(InvalidModelError, match="padding is by id"):
        graph.insert(OP_TYPE, node.inputs, {"bits": 8, "padding_idx": 0}, domain=DOMAIN)
    with pytest.raises(InvalidModelError, match="no codes"):
        graph.insert(OP_TYPE, node.inputs, {"bits": 4}, domain=DOMAIN)
