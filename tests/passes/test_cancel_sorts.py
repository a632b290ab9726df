"""Rows that are sorted and put back are computed where they are."""

from __future__ import annotations

import pytest

from graphopt.passes.cancel_sorts import CancelSorts
from graphopt.passes.cse import Cse
from graphopt.passes.dce import Dce
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.spec import Pipeline
from graphopt.testing import assert_keeps_outputs, assert_rewrites, assert_unchanged, parse

HEAD = """(float[N,4] x, float[N,4] z, int64[N] lengths) => (float[] y) <float[4,8] w,
    int64 zero = {0}, int64 one = {1}, int64[1] few = {1}, float[1,24,4] wx, float[1,24,8] r> {
    n = Shape(lengths)
    sorted, order = TopK<axis=0>(lengths, n)
    s = Gather(x, order)
"""
BACK = "k = Squeeze(n) counted = Range(zero, k, one) back = ScatterElements(order, order, counted) "


def test_the_order_of_an_order_undoes_it() -> None:
    before = "h = MatMul(s, w) i, back = TopK<axis=0, largest=0>(order, n) y = Gather(h, back) }"
    assert_rewrites(CancelSorts(), HEAD + before, HEAD.split("n = Shape")[0] + "y = MatMul(x, w) }")


def test_both_results_of_a_recurrent_layer() -> None:
    text = """(float[T,N,4] x, int64[N] lengths) => (float[] y, float[] last)
        <float[1,24,4] w, float[1,24,8] r, int64 zero = {0}, int64 one = {1}, int64 most = {5}> {
        n = Shape(lengths)
        k = Squeeze(n)
        counted = Range(zero, k, one)
        short = Clip(lengths, one, most)
        sorted, order = TopK<axis=0>(short, n)
        s = Gather<axis=1>(x, order)
        steps = Cast<to=6>(sorted)
        h, h_n = GRU<hidden_size=8>(s, w, r, , steps)
        back = ScatterElements(order, order, counted)
        y = Gather<axis=2>(h, back)
        last = Gather<axis=1>(h_n, back)
    }"""
    graph = parse(text)
    assert_keeps_outputs(CancelSorts(), graph, sizes={"T": 5})
    PassManager().run(graph, Pipeline((Cse(), Dce())))
    ops = [node.op for node in graph.nodes]
    assert ops.count("GRU") == 1 and "TopK" not in ops and "Gather" not in ops


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("h = MatMul(s, w) y = Gather(h, order)", None),
        ("h = MatMul(s, w) i, best = TopK<axis=0>(order, n) y = Gather(h, best)", None),
        (
            "h = MatMul(s, w) i, best = TopK<axis=0, largest=0>(order, few) y = Gather(h, best)",
            None,
        ),
        (f"h = Softmax<axis=0>(s) {BACK} y = Gather(h, back)", "from the same row"),
        (f"h = Add(s, z) {BACK} y = Gather(h, back)", "has rows of its own"),
        (f"t = Transpose(s) h = MatMul(s, t) {BACK} y = Gather(h, back)", "read as a whole"),
        (
            BACK.replace("ments(", 'ments<reduction="add">(') + "y = Gather(s, back)",
            None,
        ),
        ("back = ScatterElements(order, order, order) y = Gather(s, back)", None),
    ],
)
def test_others_stay(body: str, reason: str | None) -> None:
    assert_unchanged(CancelSorts(), f"{HEAD}{body} }}", reason)


UNIQUE = """(int64[N,3] ids, float[9,4] t) => (float[] y) <float[4,8] w, int64[1] flat = {-1}> {
    few, first, back, n = Unique(ids) s = Gather(t, few) """


def test_ids_looked_up_once_each_and_brought_back() -> None:
    after = "f = Reshape(ids, flat) y = Gather<axis=0>(t, f) }"
    before = UNIQUE.split("few")[0]
    assert_rewrites(CancelSorts(), UNIQUE + "y = Gather(s, back) }", before + after)


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather(s, first) }",  # no inverse
        "h = MatMul(s, w) y = Gather(h, back) }",  # fewer rows are multiplied so
        "other, f, i, c = Unique(n) y = Gather(s, i) }",  # of other ids
    ],
)
def test_other_uses_of_unique_stay(body: str) -> None:
    assert_unchanged(CancelSorts(), UNIQUE + body)
