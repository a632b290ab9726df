"""`graphopt::TableRows`: what it means, its function body, its types, its kernel."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from graphopt.errors import IdError, InvalidModelError, UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops.table_rows import DOMAIN, OP_TYPE, table_rows
from graphopt.targets.base import Oob
from graphopt.testing import Compiled

ROWS, STARTS = np.array([7, 1, 5, 7]), np.array([0, 7, 8, 0])
TABLE = np.arange(13 * 3, dtype=np.float32).reshape(13, 3)
LIMITS = np.iinfo(np.int64)
INSIDE = np.array([[0, 0, 4, 6], [6, -1, -5, -7], [-7, 0, -1, 3]])
OUTSIDE = [
    (0, 7), (0, -8), (1, 1), (1, -2), (2, 5), (2, -6), (3, 7), (3, 12), (2, LIMITS.max),
    (0, LIMITS.min), (2, LIMITS.max - 7), (3, 2**32), (1, -(2**32)),
]  # fmt: skip


def graph_of(ints: str = "int64", rows: np.ndarray = ROWS, starts: np.ndarray = STARTS) -> Graph:
    """A lookup in four tables, two of them the same, stacked in one."""
    graph = Graph(opsets={"": 18})
    ids = graph.add_input("ids", TensorType(ints, (Sym.named("n"), 4)))
    sizes = [graph.constant(rows), graph.constant(starts)]
    number = graph.insert(OP_TYPE, [ids, *sizes], domain=DOMAIN).output
    found = graph.insert("Gather", [graph.constant(TABLE), number]).output
    graph.set_outputs([number, found], ["number", "found"])
    return graph


def session_of(graph: Graph) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(onnx_io.to_proto(graph).SerializeToString(), options)


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    return session_of(graph_of())


@pytest.fixture(scope="module")
def compiled() -> dict[str, Compiled]:
    policies: tuple[Oob, ...] = ("error", "clamp", "zero")
    return {oob: Compiled(graph_of(), oob) for oob in policies}


def test_meaning() -> None:
    tables = [TABLE[start : start + rows] for start, rows in zip(STARTS, ROWS)]
    found = TABLE[table_rows(INSIDE, ROWS, STARTS)]
    for column, table in enumerate(tables):
        np.testing.assert_array_equal(found[:, column], table[INSIDE[:, column]])


@pytest.mark.parametrize("ids", [INSIDE, INSIDE[:1], INSIDE[:0]], ids=["some", "one", "none"])
@pytest.mark.parametrize("ints", ["int32", "int64"])
def test_body(ids: np.ndarray, ints: str) -> None:
    number, found = session_of(graph_of(ints)).run(None, {"ids": ids.astype(ints)})
    np.testing.assert_array_equal(number, table_rows(ids, ROWS, STARTS))
    np.testing.assert_array_equal(found, TABLE[table_rows(ids, ROWS, STARTS)])


@pytest.mark.parametrize(("column", "stray"), OUTSIDE)
def test_no_id_reads_a_neighbour(
    session: onnxruntime.InferenceSession,
    compiled: dict[str, Compiled],
    column: int,
    stray: int,
) -> None:
    ids = INSIDE.copy()
    ids[1, column] = stray
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(None, {"ids": ids})
    with pytest.raises(IdError, match="TableRows"):
        compiled["error"]({"ids": ids})


@pytest.mark.parametrize("ints", ["int32", "int64"])
def test_kernel(ints: str) -> None:
    found = Compiled(graph_of(ints))({"ids": INSIDE.astype(ints)})
    np.testing.assert_array_equal(found["number"], table_rows(INSIDE, ROWS, STARTS))
    np.testing.assert_array_equal(found["found"], TABLE[found["number"]])


@pytest.mark.parametrize(("column", "stray"), OUTSIDE)
def test_policies(compiled: dict[str, Compiled], column: int, stray: int) -> None:
    ids = INSIDE.copy()
    ids[1, column] = stray
    wanted = TABLE[table_rows(np.clip(ids, -ROWS, ROWS - 1), ROWS, STARTS)]
    np.testing.assert_array_equal(compiled["clamp"]({"ids": ids})["found"], wanted)
    wanted[1, column] = 0
    np.testing.assert_array_equal(compiled["zero"]({"ids": ids})["found"], wanted)


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="one is empty"):
        Compiled(graph_of(rows=np.array([7, 0, 5, 7])))


@pytest.mark.parametrize(
    ("types", "reason"),
    [
        ([("float32", (3, 2)), ("int64", (2,)), ("int64", (2,))], "ids must be"),
        ([("int64", (3,)), ("int64", (2,)), ("int64", (2,))], "ids must be"),
        ([("int64", (3, 4)), ("int64", (2,)), ("int64", (2,))], "ids must be"),
        ([("int64", (3, 2)), ("int32", (2,)), ("int32", (2,))], "rows and starts"),
        ([("int64", (3, 2)), ("int64", (2,)), ("int64", (3,))], "rows and starts"),
        ([("int64", (3, 2)), ("int64", (2,))], "must be tensors"),
    ],
)
def test_types(types: list[tuple[str, tuple[int, ...]]], reason: str) -> None:
    graph = Graph(opsets={"": 18})
    values = [graph.add_input(f"x{k}", TensorType(*given)) for k, given in enumerate(types)]
    with pytest.raises(InvalidModelError, match=reason):
        graph.insert(OP_TYPE, values, domain=DOMAIN)


def test_it_survives_a_file() -> None:
    again = onnx_io.from_proto(onnx_io.to_proto(graph_of()))
    assert [node.op for node in again.nodes] == ["graphopt::TableRows", "Gather"]
