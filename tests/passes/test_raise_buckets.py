"""Searches for buckets become counts."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.raise_buckets import RaiseBuckets
from graphopt.pipeline.base import PassContext
from graphopt.testing import assert_rewrites, assert_unchanged, parse, run_compiled, run_onnxruntime


def search(compare: str = "GreaterOrEqual", numbers: str = "float[N,2] x", more: str = "") -> str:
    """Of a binary search over three boundaries, both steps, as PyTorch writes `bucketize`."""
    return f"""({numbers}) => (int64[] y) <
        float[3] b = {{0.5, 1, 2}}, float[3] other = {{0.5, 1, 3}},
        int64 zero = {{0}}, int64 one = {{1}}, int64 two = {{2}}
    > {{
        s = Shape(x) m = ConstantOfShape<value = int64[1] {{1}}>(s)
        e = Gather(b, m) c = {compare}(e, x) low = Where(c, zero, two)
        f = Gather(b, low) d = {compare}(f, x) next = Add(low, one)
        y = Where(d, low, next) {more}
    }}"""


NUMBERS = np.array(
    [[0.5, 0.4999], [1, 1.0001], [2, 2.5], [-np.inf, np.inf], [np.nan, -0.0], [0, 1e30]], np.float32
)


@pytest.mark.parametrize(("compare", "torch_right"), [("GreaterOrEqual", False), ("Greater", True)])
def test_every_kind_of_number(compare: str, torch_right: bool) -> None:
    graph = parse(search(compare))
    wanted = run_onnxruntime(graph, {"x": NUMBERS})["y"]
    assert RaiseBuckets().run(graph, PassContext())
    assert [node.op for node in graph.nodes][1] == compare
    np.testing.assert_array_equal(run_onnxruntime(graph, {"x": NUMBERS})["y"], wanted)
    np.testing.assert_array_equal(run_compiled(graph, {"x": NUMBERS})["y"], wanted)
    side = "right" if torch_right else "left"
    finite = ~np.isnan(NUMBERS)
    expected = np.searchsorted(np.array([0.5, 1, 2], np.float32), NUMBERS[finite], side)
    np.testing.assert_array_equal(wanted[finite], expected)


def test_nan_below_all_boundaries() -> None:
    """Asked whether a boundary is below, NaN is in the first bucket, not in the last."""
    text = search("Less").replace("Where(c, zero, two)", "Where(c, two, zero)")
    text = text.replace("Where(d, low, next)", "Where(d, next, low)")
    graph = parse(text)
    wanted = run_onnxruntime(graph, {"x": NUMBERS})["y"]
    assert wanted[4, 0] == 0
    assert RaiseBuckets().run(graph, PassContext())
    np.testing.assert_array_equal(run_onnxruntime(graph, {"x": NUMBERS})["y"], wanted)


TWO = {"z": "float[N,2] x, float[N,2] z", "row": "float[N,2] x, float[2] z"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (search().replace("Gather(b, low)", "Gather(other, low)"), "different tables"),
        (search().replace("Where(d, low, next)", "Where(d, next, low)"), "is not the number of"),
        (search().replace("{0.5, 1, 2}", "{0.5, 2, 1}"), "is not the number of"),
        (search().replace("int64 two = {2}", "int64 two = {7}"), "ONNX Runtime cannot"),
        (search(numbers=TWO["z"]).replace("(f, x)", "(f, z)"), None),
        (search(numbers=TWO["row"]).replace("(f, x)", "(f, z)"), None),
        (search(numbers="float[N,2] x, int64[N,2] n").replace("(low, one)", "(low, n)"), None),
    ],
)
def test_what_is_no_search_stays(text: str, reason: str | None) -> None:
    assert_unchanged(RaiseBuckets(), text, reason)


def test_too_many_boundaries_stay() -> None:
    many = ", ".join(map(str, range(600)))
    text = search().replace("float[3] b = {0.5, 1, 2}", f"float[600] b = {{{many}}}")
    assert_unchanged(RaiseBuckets(), text, "more than 512")


def test_results_are_used_in_other_shapes() -> None:
    """What follows may combine buckets with offsets of their columns."""
    source = (
        search(more="")
        .replace("y = Where", "w = Where")
        .replace("int64 zero", "int64[2] offset = {0, 4}, int64 zero")
    )
    source = source.replace("next)", "next) y = Add(w, offset)")
    after = """(float[N,2] x) => (int64[] y) <
        float[3] b = {0.5, 1, 2}, int64[1] last = {-1}, int64 size = {3}, int64[2] offset = {0, 4}
    > {
        u = Unsqueeze(x, last) c = GreaterOrEqual(b, u) f = Cast<to=1>(c)
        s = ReduceSum<keepdims=0>(f, last) i = Cast<to=7>(s) w = Sub(size, i) y = Add(w, offset)
    }"""
    assert_rewrites(RaiseBuckets(), source, after)
