"""Segments that are sorted and padded to be reduced are reduced by one scatter."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir.graph import Graph
from graphopt.passes.raise_segment_sums import RaiseSegmentSums
from graphopt.pipeline.base import PassContext
from graphopt.testing import assert_unchanged, parse, run_onnxruntime

HEAD = """(float[N,4] x, int64[N] segment) => (float[] y)
    <float[1,4] none = {0, 0, 0, 0}, float[1,4] one_each = {1, 1, 1, 1}, int64[1] zero = {0},
     float[1,4] least = {-3.4028235e38, -3.4028235e38, -3.4028235e38, -3.4028235e38},
     int64[1] middle = {1}, int64 first = {0}, int64 one = {1}, int64[2] column = {-1, 1}> {
    n = Shape(segment)
"""
SORT = "sorted, order = TopK<axis=0, largest=0>(segment, n) "
UNIQUE = "u, at, inverse, counts = Unique<axis=0>(sorted) "
NUMBER = "c = Gather(counts, inverse) k = Squeeze(n) r = Range(first, k, one) nth = Mod(r, c) "
PLACES = """a = Reshape(sorted, column) b = Reshape(nth, column) tuples = Concat<axis=1>(a, b)
    last = ReduceMax(segment, zero) number = Add(last, one) most = ReduceMax(counts, zero)
    sizes = Concat<axis=0>(number, most) empty = ConstantOfShape<value=int64[1] {-1}>(sizes)
    places = ScatterND(empty, tuples, order) """
PADDED = "padded = Concat<axis=0>(x, none) rows = Gather(padded, places) "
SUM = PADDED + "y = ReduceSum<keepdims=0>(rows, middle) }"
WHOLE = HEAD + SORT + UNIQUE + NUMBER + PLACES + SUM

SEGMENTS = ([0], [0, 0, 2], [3, 1, 1, 0, 3, 1], [5, 5, 5], [0, 1, 2, 3])


def _agrees(text: str) -> Graph:
    """The graph of `text` after the pass, which gives the same answers for many segments."""
    source, graph = parse(text), parse(text)
    assert RaiseSegmentSums().run(graph, PassContext())
    for segment in SEGMENTS:
        x = np.arange(4 * len(segment), dtype=np.float32).reshape(-1, 4) - 5
        feeds = {"x": x, "segment": np.array(segment)}
        (expected,), (found,) = (run_onnxruntime(g, feeds).values() for g in (source, graph))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    return graph


@pytest.mark.parametrize("keepdims", [0, 1])
def test_sums(keepdims: int) -> None:
    graph = _agrees(WHOLE.replace("keepdims=0", f"keepdims={keepdims}"))
    ops = {node.op for node in graph.nodes}
    assert "ScatterND" in ops and not ops & {"TopK", "Unique", "Mod", "Gather"}


@pytest.mark.parametrize(("kind", "filler"), [("Max", "least"), ("Prod", "one_each")])
def test_other_reductions(kind: str, filler: str) -> None:
    text = WHOLE.replace("ReduceSum", f"Reduce{kind}").replace("(x, none)", f"(x, {filler})")
    assert any(
        n.attr("reduction") == kind.lower().replace("prod", "mul") for n in _agrees(text).nodes
    )


def test_counts() -> None:
    text = (
        HEAD
        + SORT
        + UNIQUE
        + """last = ReduceMax(segment, zero) number = Add(last, one)
        z = ConstantOfShape<value=int64[1] {0}>(number) s = ScatterElements(z, u, counts)
        y = Cast<to=1>(s) }"""
    )
    ops = {node.op for node in _agrees(text).nodes}
    assert "ScatterElements" in ops and not ops & {"TopK", "Unique"}


def test_means_have_as_many_rows_as_counts() -> None:
    counts = """z = ConstantOfShape<value=int64[1] {0}>(number) s = ScatterElements(z, u, counts)
        f = Cast<to=1>(s) d = Reshape(f, column) y = Div(total, d) }"""
    text = WHOLE.replace("y = ReduceSum", "total = ReduceSum").removesuffix("}") + counts
    source, graph = parse(text), parse(text)
    assert RaiseSegmentSums().run(graph, PassContext())
    feeds = {"x": np.ones((3, 4), np.float32), "segment": np.array([1, 0, 1])}
    (expected,), (found,) = (run_onnxruntime(g, feeds).values() for g in (source, graph))
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(x, none)", "(x, one_each)"),  # what is padded counts
        ("(x, none)", "(none, x)"),
        ("{-1}", "{0}"),
        ("largest=0", "largest=1"),  # the order of rows, but not what the Unique counts
        ("Mod(r, c)", "Identity(r)"),
        ("Range(first, k, one)", "Range(one, k, one)"),
        ("Unique<axis=0>(sorted)", "Unique<axis=0>(segment)"),
        ("(rows, middle)", "(rows, zero)"),
        ("ReduceMax(counts, zero)", "ReduceMax(u, zero)"),
    ],
)
def test_left_alone(old: str, new: str) -> None:
    assert old in WHOLE
    assert_unchanged(RaiseSegmentSums(), WHOLE.replace(old, new))


def test_counts_from_another_start_are_left_alone() -> None:
    text = (
        HEAD
        + SORT
        + UNIQUE
        + """last = ReduceMax(segment, zero) number = Add(last, one)
        z = ConstantOfShape<value=int64[1] {1}>(number) s = ScatterElements(z, u, counts)
        y = Cast<to=1>(s) }"""
    )
    assert_unchanged(RaiseSegmentSums(), text)
