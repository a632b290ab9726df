"""Rows of many tables, written side by side by one launch, against NumPy."""

from __future__ import annotations

from pathlib import Path

import gpu_emulator
import numpy as np
import pytest

from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph, Value
from graphopt.ir.types import TensorType
from graphopt.ops import product_lookup, quantized_lookup, table_rows
from graphopt.ops.quantized_lookup import packed
from graphopt.targets.base import Oob

from .conftest import Feeds, Runner

N = Sym.named("n")
RNG = np.random.default_rng(11)
ROWS = 40
WIDE, NARROW = (RNG.standard_normal((ROWS, d)).astype(np.float32) for d in (1100, 6))
HALF = RNG.standard_normal((ROWS, 8)).astype(np.float16)
CODES8 = RNG.integers(-128, 128, (ROWS, 16)).astype(np.int8)
CODES4 = RNG.integers(-8, 8, (ROWS, 12)).astype(np.int8)
PLACES = RNG.integers(0, 256, (ROWS, 5)).astype(np.uint8)
BOOKS = {
    width: RNG.standard_normal((5 * 256, width)).astype(dtype)
    for width, dtype in ((4, np.float32), (3, np.float16))
}
SCALES = RNG.random(ROWS).astype(np.float16)
SIZES, STARTS = np.array([9, 1, 30]), np.array([0, 9, 10])


def input_of(graph: Graph, name: str, *shape: int, dtype: str = "int64") -> Value:
    return graph.add_input(name, TensorType(dtype, (N, *shape)))


def quantized(graph: Graph, codes: np.ndarray, bits: int, ids: Value) -> Value:
    operands = [graph.constant(packed(codes) if bits == 4 else codes), graph.constant(SCALES), ids]
    domain, attrs = quantized_lookup.DOMAIN, {"bits": bits}
    return graph.insert(quantized_lookup.OP_TYPE, operands, attrs, domain=domain).output


def of_books(graph: Graph, width: int, ids: Value) -> Value:
    operands = [graph.constant(PLACES), graph.constant(BOOKS[width]), ids]
    return graph.insert(product_lookup.OP_TYPE, operands, domain=product_lookup.DOMAIN).output


def stacked(graph: Graph, table: np.ndarray, ids: Value) -> Value:
    operands = [ids, graph.constant(SIZES), graph.constant(STARTS)]
    rows = graph.insert(table_rows.OP_TYPE, operands, domain=table_rows.DOMAIN).output
    return graph.insert("Gather", [graph.constant(table), rows]).output


def flat(graph: Graph, value: Value, width: int) -> Value:
    return graph.insert("Reshape", [value, graph.constant(np.array([-1, width]))]).output


def everything() -> Graph:
    """A concatenation of every kind of operand that there is."""
    graph = Graph(opsets={"": 18})
    one, two, three = (input_of(graph, name, k) for name, k in (("a", 1), ("b", 2), ("c", 3)))
    dense = input_of(graph, "dense", 6, dtype="float32")
    narrow, wide, half = (
        graph.insert("Gather", [graph.constant(table), ids]).output
        for table, ids in ((NARROW, two), (WIDE, one), (HALF, one))
    )
    operands = [
        flat(graph, narrow, 12),
        dense,
        flat(graph, wide, 1100),
        flat(graph, graph.insert("Cast", [half], {"to": 1}).output, 8),
        flat(graph, quantized(graph, CODES8, 8, two), 32),
        flat(graph, quantized(graph, CODES4, 4, one), 12),
        flat(graph, stacked(graph, NARROW, three), 18),
        flat(graph, of_books(graph, 4, two), 40),
        flat(graph, of_books(graph, 3, one), 15),
    ]
    graph.set_outputs([graph.insert("Concat", operands, {"axis": 1}).output], ["y"])
    return graph


def feed_of(n: int, low: int = -ROWS) -> Feeds:
    ids = {name: RNG.integers(low, ROWS, (n, k)) for name, k in (("a", 1), ("b", 2))}
    third = np.stack([RNG.integers(-size, size, n) for size in SIZES], axis=1)
    return {**ids, "c": third, "dense": RNG.standard_normal((n, 6)).astype(np.float32)}


def expected_of(feed: Feeds) -> np.ndarray:
    """Of ids inside their tables."""
    one, two = feed["a"], feed["b"]
    scales = SCALES.astype(np.float32)[:, None]
    parts = [
        NARROW[two], feed["dense"], WIDE[one], HALF[one].astype(np.float32),
        (CODES8 * scales)[two], (CODES4 * scales)[one], NARROW[feed["c"] % SIZES + STARTS],
        product_lookup.product_lookup(PLACES, BOOKS[4], two),
        product_lookup.product_lookup(PLACES, BOOKS[3], one),
    ]  # fmt: skip
    return np.concatenate([part.reshape(len(one), -1) for part in parts], axis=1)


def launches(source: str) -> int:
    return source.count('extern "C" __global__') // 2  # each is declared first


def test_operands_of_every_kind_in_one_launch(run_model: Runner, tmp_path: Path) -> None:
    sources: list[str] = []

    def keep(source: str) -> str:
        sources.append(source)
        return source

    feeds = [feed_of(n) for n in (1, 7, 64)]
    for found, feed in zip(run_model(everything(), *feeds, edit=keep), feeds):
        np.testing.assert_array_equal(found["y"], expected_of(feed))
    assert launches(sources[0]) == 1  # which looks at the ids, too
    assert "float2" in sources[0]


def test_no_rows(run_model: Runner) -> None:
    (found,) = run_model(everything(), feed_of(0))
    assert found["y"].shape == (0, 1243)


@pytest.mark.parametrize("oob", ["clamp", "zero"])
def test_ids_outside(oob: Oob, run_model: Runner) -> None:
    feed = {**feed_of(9)}
    feed["a"][::2] = 10**12
    feed["b"][1::2, 1] = -ROWS - 1
    feed["c"][3] = [9, -2, 30]
    size = {"a": ROWS, "b": ROWS, "c": SIZES}
    clamped = {name: np.clip(feed[name], -size[name], size[name] - 1) for name in size}
    expected = expected_of({**feed, **clamped})
    if oob == "zero":
        widths = [
            ("b", 6), ("a", 1108), ("b", 16), ("a", 12), ("c", 6), ("b", 20), ("a", 15)
        ]  # fmt: skip
        lost = [np.repeat(clamped[k] != feed[k], w, axis=1) for k, w in widths]
        lost.insert(1, np.zeros((9, 6), bool))
        expected[np.concatenate(lost, axis=1)] = 0
    (found,) = run_model(everything(), feed, oob=oob)
    np.testing.assert_array_equal(found["y"], expected)


@pytest.mark.parametrize(("name", "bad"), [("a", 40), ("b", -41), ("c", 30)])
def test_ids_outside_are_an_error(name: str, bad: int, run_model: Runner) -> None:
    feed = feed_of(3)
    feed[name][2, -1] = bad
    what = "TableRows" if name == "c" else "Gather|QuantizedLookup"
    with pytest.raises(
        gpu_emulator.LaunchError, match=rf"IdError: an id is out of range: .*({what})"
    ):
        run_model(everything(), feed)


def lone(kind: str) -> Graph:
    graph = Graph(opsets={"": 18})
    ids = input_of(graph, "ids", 3)
    found = {
        "codes": lambda: quantized(graph, CODES8, 8, ids),
        "rows": lambda: stacked(graph, NARROW, ids),
        "books": lambda: of_books(graph, 4, ids),
    }[kind]()
    graph.set_outputs([found], ["y"])
    return graph


def test_lone_lookups(run_model: Runner) -> None:
    feed = {"ids": feed_of(70)["c"]}
    (codes,) = run_model(lone("codes"), feed)
    np.testing.assert_array_equal(
        codes["y"], (CODES8 * SCALES.astype(np.float32)[:, None])[feed["ids"]]
    )
    (rows,) = run_model(lone("rows"), feed)
    np.testing.assert_array_equal(rows["y"], NARROW[feed["ids"] % SIZES + STARTS])
    (parts,) = run_model(lone("books"), feed)
    wanted = product_lookup.product_lookup(PLACES, BOOKS[4], feed["ids"])
    np.testing.assert_array_equal(parts["y"], wanted)
