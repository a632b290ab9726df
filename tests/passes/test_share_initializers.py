"""Equal constants are stored once; nearly equal ones are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.passes import share_initializers
from graphopt.passes.share_initializers import ShareInitializers
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.manager import size_of
from graphopt.testing import assert_unchanged


def graph_of(*arrays: np.ndarray) -> Graph:
    """A graph that adds all arrays up, so that each is read."""
    graph = Graph("g", {"": 18})
    total = graph.add_input("x", TensorType("float32", ()))
    for array in arrays:
        value = graph.constant(array)
        cast = graph.insert("Cast", [value], {"to": 1}).output
        summed = graph.insert("ReduceSum", [cast], {"keepdims": 0}).output
        total = graph.insert("Add", [total, summed]).output
    graph.set_outputs([total], ["y"])
    return graph


def constants_after(*arrays: np.ndarray) -> int:
    graph = graph_of(*arrays)
    changed = ShareInitializers().run(graph, PassContext())
    left = len(graph.constants())
    assert changed == (left < len(arrays))
    assert not ShareInitializers().run(graph, PassContext())
    return left


def table(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(100, 8)).astype(np.float32)


def test_equal_tables_are_stored_once() -> None:
    assert constants_after(table(), table(), table(1), table()) == 2
    graph = graph_of(table(), table())
    before = size_of(graph).bytes
    ShareInitializers().run(graph, PassContext())
    assert size_of(graph).bytes == before // 2


def test_one_bit_is_a_difference() -> None:
    other = table()
    other[71, 5] = np.nextafter(other[71, 5], np.float32(9))
    assert constants_after(table(), other) == 2


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (np.float32([0.0]), np.float32([-0.0]), False),
        (np.float32([np.nan]), np.float32([np.nan]), True),
        (np.float32([1, 2]), np.float32([[1, 2]]), False),
        (np.int32([1, 2]), np.int64([1, 2]), False),
        (np.int64([1, 2]), np.int64([1, 2]), True),
        (np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32), True),
        (np.zeros((0, 4), np.float32), np.zeros((0, 5), np.float32), False),
        (table(), table().T.copy().T, True),
        (table(), table()[:, ::-1], False),
    ],
)
def test_dtype_shape_and_bits_decide(a: np.ndarray, b: np.ndarray, equal: bool) -> None:
    assert constants_after(a, b) == (1 if equal else 2)


def test_text_is_compared_as_text() -> None:
    graph = Graph("g", {"": 18})
    words = [graph.constant(np.array([w], dtype=object)) for w in ("a", "a", "b")]
    joined = graph.insert("Concat", words, {"axis": 0}).output
    graph.set_outputs([joined], ["y"])
    assert ShareInitializers().run(graph, PassContext())
    assert len(graph.constants()) == 2


def test_tables_larger_than_a_chunk_are_compared_to_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(share_initializers, "_CHUNK", 256)
    other = table()
    other[99, 6] += 1  # not among the sampled elements
    assert constants_after(table(), table(), other) == 2


def test_views_of_one_file_are_equal_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "table.bin"
    with path.open("wb") as file:
        file.truncate(1 << 43)
    whole = np.memmap(path, np.float32, "r", shape=(1 << 35, 64))
    assert constants_after(whole[:], whole[:]) == 1


def test_different_constants_stay() -> None:
    text = """(float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {2, 1}> {
        u = Add(x, a)
        y = Add(u, b)
    }"""
    assert_unchanged(ShareInitializers(), text)
