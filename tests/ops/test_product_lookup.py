"""`graphopt::ProductLookup`: its function body, its types, its kernel."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.errors import IdError, InvalidModelError
from graphopt.ir import onnx_io
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops.product_lookup import DOMAIN, OP_TYPE, product_lookup
from graphopt.testing import Compiled, run_onnxruntime

ROWS = 40
N = Sym.named("n")


def arrays(parts: int, width: int, dtype: type = np.float16, rows: int = ROWS):  # type: ignore
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (rows, parts)).astype(np.uint8)
    return codes, rng.normal(size=(256 * parts, width)).astype(dtype)


def graph_of(codes: np.ndarray, books: np.ndarray, ints: str = "int64") -> Graph:
    graph = Graph(opsets={"": 18})
    ids = graph.add_input("ids", TensorType(ints, (N, 2)))
    inputs = [graph.constant(codes), graph.constant(books), ids]
    node = graph.insert(OP_TYPE, inputs, domain=DOMAIN)
    graph.set_outputs([node.output], ["rows"])
    return graph


@pytest.mark.parametrize("ints", ["int32", "int64"])
@pytest.mark.parametrize(("parts", "width"), [(1, 4), (4, 4), (3, 8), (5, 3)])
def test_all_forms_agree(parts: int, width: int, ints: str) -> None:
    codes, books = arrays(parts, width, np.float16 if ints == "int64" else np.float32)
    ids = np.array([[0, ROWS - 1], [-1, 3], [-ROWS, 7]]).astype(ints)
    wanted = product_lookup(codes, books, ids)
    by_hand = [books[256 * p + int(codes[3, p])] for p in range(parts)]
    np.testing.assert_array_equal(wanted[1, 1], np.concatenate(by_hand).astype(np.float32))
    graph = graph_of(codes, books, ints)
    np.testing.assert_array_equal(run_onnxruntime(graph, {"ids": ids})["rows"], wanted)
    np.testing.assert_array_equal(Compiled(graph)({"ids": ids})["rows"], wanted)


def test_tables_beyond_the_cache() -> None:
    codes, books = arrays(4, 4, rows=300_000)
    ids = np.append(np.random.default_rng(0).integers(-300_000, 300_000, 40), [299_999, -1])
    ids = ids.reshape(-1, 2)
    found = Compiled(graph_of(codes, books))({"ids": ids})["rows"]
    np.testing.assert_array_equal(found, product_lookup(codes, books, ids))


def test_ids_outside_the_table() -> None:
    codes, books = arrays(2, 4)
    ids = np.array([[ROWS, 2**62], [-ROWS - 1, -(2**62)]])
    with pytest.raises(IdError, match="out of range"):
        Compiled(graph_of(codes, books))({"ids": ids})
    assert not Compiled(graph_of(codes, books), "zero")({"ids": ids})["rows"].any()
    edges = product_lookup(codes, books, np.array([[ROWS - 1, ROWS - 1], [0, 0]]))
    found = Compiled(graph_of(codes, books), "clamp")({"ids": ids})["rows"]
    np.testing.assert_array_equal(found, edges)


def test_it_survives_a_file() -> None:
    model = onnx_io.to_proto(graph_of(*arrays(3, 4)))
    onnx.checker.check_model(model)
    (node,) = onnx_io.from_proto(model).nodes
    assert node.op == "graphopt::ProductLookup"
    assert node.output.tensor.dims[-1] == 12


@pytest.mark.parametrize(
    ("codes", "books", "ids", "says"),
    [
        (("int8", (ROWS, 2)), ("float16", (512, 4)), "int64", "are no codes"),
        (("uint8", (ROWS, 2)), ("float64", (512, 4)), "int64", "are no codebooks"),
        (("uint8", (ROWS, 2)), ("float16", (256, 4)), "int64", "are not 2 codebooks"),
        (("uint8", (ROWS, 2)), ("float16", (512, 4)), "float32", "are no ids"),
    ],
)
def test_types_that_do_not_fit(codes, books, ids: str, says: str) -> None:  # type: ignore
    graph = Graph(opsets={"": 18})
    types = [codes, books, (ids, (N,))]
    inputs = [graph.add_input(f"x{k}", TensorType(*t)) for k, t in enumerate(types)]
    with pytest.raises(InvalidModelError, match=says):
        graph.insert(OP_TYPE, inputs, domain=DOMAIN)
