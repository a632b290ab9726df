"""`graphopt::EmbeddingBags`: its function bodies, its types, its kernels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import onnxruntime
import pytest

from graphopt.errors import IdError, InvalidModelError
from graphopt.ir import onnx_io
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops.embedding_bags import DOMAIN, OP_TYPE, EmbeddingBags
from graphopt.targets.base import Oob
from graphopt.testing import Compiled

ROWS, STARTS = np.array([7, 1, 7]), np.array([0, 7, 0])
KINDS = [EmbeddingBags(mode, csr) for mode, csr in product(("sum", "mean"), (False, True))]
B = Sym.named("b")


def table(dim: int = 3) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(8, dim)).astype(np.float32)


def graph_of(bags: EmbeddingBags, ints: str = "int64", dim: int = 3) -> Graph:
    """Three fields, the first and the last of which share a table."""
    graph = Graph(opsets={"": 18})
    offsets = graph.add_input("offsets", TensorType(ints, (3, B)))
    lengths = [Sym.named(f"n{k}") for k in range(3)]
    ids = [graph.add_input(f"ids{k}", TensorType(ints, (n,))) for k, n in enumerate(lengths)]
    tables = [graph.constant(array) for array in (table(dim), ROWS, STARTS)]
    node = graph.insert(OP_TYPE, [*tables, offsets, *ids], bags.attrs, domain=DOMAIN)
    graph.set_outputs([node.output], ["pooled"])
    return graph


def feeds_of(bags: EmbeddingBags, ints: str = "int64") -> Iterator[dict[str, np.ndarray]]:
    """Empty bags everywhere, ids before the first bag and after the last, nothing at all."""
    rng = np.random.default_rng(2)
    for bounds, counts in [
        ([[0, 3, 5], [0, 1, 1], [0, 0, 2]], (9, 1, 2)),
        ([[2, 2, 4], [1, 1, 2], [0, 4, 4]], (5, 3, 4)),
        ([[0], [0], [0]], (1, 0, 20)),
        ([[0, 0], [0, 0], [0, 0]], (0, 0, 0)),
    ]:
        offsets = np.array(bounds)
        if bags.include_last_offset:
            last = np.array([max(row[-1], n - 1) for row, n in zip(bounds, counts)])
            offsets = np.concatenate([offsets, last[:, None]], axis=1)
        ids = [rng.integers(-rows, rows, n) for rows, n in zip(ROWS, counts)]
        feeds = {"offsets": offsets, **{f"ids{k}": array for k, array in enumerate(ids)}}
        yield {name: array.astype(ints) for name, array in feeds.items()}


def expected(bags: EmbeddingBags, feeds: dict[str, np.ndarray], dim: int = 3) -> np.ndarray:
    tables = [table(dim)[start : start + rows] for start, rows in zip(STARTS, ROWS)]
    ids = [feeds[f"ids{k}"] for k in range(3)]
    return bags.pool(tables, feeds["offsets"], *ids)


def session_of(graph: Graph) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(onnx_io.to_proto(graph).SerializeToString(), options)


@pytest.mark.parametrize("ints", ["int32", "int64"])
@pytest.mark.parametrize("bags", KINDS, ids=str)
def test_body_and_kernel(bags: EmbeddingBags, ints: str) -> None:
    graph = graph_of(bags, ints)
    session, compiled = session_of(graph), Compiled(graph)
    for feeds in feeds_of(bags, ints):
        wanted = expected(bags, feeds)  # a bag's few rows may be added up in another order
        np.testing.assert_allclose(session.run(None, feeds)[0], wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(compiled(feeds)["pooled"], wanted, rtol=1e-5, atol=1e-6)


def test_wide_rows() -> None:
    bags = EmbeddingBags("sum")
    compiled = Compiled(graph_of(bags, dim=131))
    for feeds in feeds_of(bags):
        wanted = expected(bags, feeds, dim=131)
        np.testing.assert_allclose(compiled(feeds)["pooled"], wanted, rtol=1e-5, atol=1e-6)


FAR = np.iinfo(np.int64).max
STRAY = [("ids0", 7), ("ids0", -8), ("ids1", 1), ("ids1", -2), ("ids2", FAR), ("ids2", -FAR)]


@cache
def sums(oob: Oob = "error") -> Compiled:
    return Compiled(graph_of(EmbeddingBags("sum")), oob)


@pytest.mark.parametrize(("name", "stray"), [*STRAY, ("offsets", 10), ("offsets", -1)])
def test_nothing_is_read_elsewhere(name: str, stray: int) -> None:
    bags = EmbeddingBags("sum")
    feeds = next(feeds_of(bags))
    feeds[name].flat[0] = stray
    with pytest.raises(Exception, match="bounds"):
        session_of(graph_of(bags)).run(None, feeds)
    with pytest.raises(IdError, match="EmbeddingBags"):
        sums()(feeds)


@pytest.mark.parametrize(("name", "stray"), STRAY)
def test_policies(name: str, stray: int) -> None:
    bags = EmbeddingBags("sum")
    feeds = next(feeds_of(bags))
    feeds[name].flat[0] = stray
    size = ROWS[int(name[-1])]
    near = {**feeds, name: np.clip(feeds[name], -size, size - 1)}
    found = sums("clamp")(feeds)["pooled"]
    np.testing.assert_allclose(found, expected(bags, near), rtol=1e-5, atol=1e-6)
    found = sums("zero")(feeds)["pooled"]
    assert np.isfinite(found).all()


def _types(**changes: Any) -> list[TensorType]:
    types = {
        "table": ("float32", (8, 3)),
        "rows": ("int64", (2,)),
        "starts": ("int64", (2,)),
        "offsets": ("int64", (2, 5)),
        "a": ("int64", (9,)),
        "b": ("int64", (4,)),
    }
    return [TensorType(*given) for given in (types | changes).values()]


@pytest.mark.parametrize(
    ("types", "reason"),
    [
        (_types(table=("float64", (8, 3))), "the table must be"),
        (_types(starts=("int64", (3,))), "rows and starts must be"),
        (_types(offsets=("int64", (5,))), "offsets must be"),
        (_types(b=("int32", (4,))), "ids must be vectors"),
        (_types()[:4], "must be tensors"),
    ],
)
def test_types(types: list[TensorType], reason: str) -> None:
    graph = Graph(opsets={"": 18})
    values = [graph.add_input(f"x{k}", given) for k, given in enumerate(types)]
    with pytest.raises(InvalidModelError, match=reason):
        graph.insert(OP_TYPE, values, domain=DOMAIN)


def test_bags_have_a_type() -> None:
    graph = Graph(opsets={"": 18})
    values = [graph.add_input(f"x{k}", given) for k, given in enumerate(_types())]
    attrs = EmbeddingBags("mean", True).attrs
    node = graph.insert(OP_TYPE, values, attrs, domain=DOMAIN)
    assert node.output.type == TensorType("float32", (4, 2, 3))
