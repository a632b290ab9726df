"""Loops that only resemble embedding bags, or cannot be proved to be some, are left alone."""

from __future__ import annotations

import numpy as np
import pytest
from bag_loops import ROWS_OF_IDS, TOTAL, WEIGHTED, WEIGHTS, loop, pooling

from graphopt.ir import onnx_io
from graphopt.passes import _execution
from graphopt.passes._execution import Execution
from graphopt.passes.raise_embedding_bag import RaiseEmbeddingBag
from graphopt.testing import assert_keeps_outputs, assert_unchanged, parse

OTHER = "no sum, mean or maximum of bags"
ALONE = "it is no function of one table"

NOT_BAGS = {
    "adds the index": (loop(TOTAL + "f = Cast<to=1>(i) row = Add(t, f)"), OTHER),
    "scales": (loop(TOTAL + "row = Mul(t, two)"), OTHER),
    "adds a little": (loop(TOTAL + "row = Add(t, tiny)"), OTHER),
    "rounds the sum": (loop(TOTAL + "h = Cast<to=10>(t) row = Cast<to=1>(h)"), OTHER),
    "rounds to bfloat16": (pooling("h = Cast<to=16>(rows)", "m = Cast<to=1>(h)"), OTHER),
    "rounds to integers": (pooling("h = Cast<to=7>(rows)", "m = Cast<to=1>(h)"), OTHER),
    "squares": (pooling("m = Mul(rows, rows)"), OTHER),
    "first id only": (pooling("m = Slice(rows, zero, one)"), OTHER),
    "activation": (pooling("m = Relu(rows)"), "Relu has no place"),
    "minimum": (loop("row = ReduceMin<keepdims=0>(rows, zero)"), OTHER),
    "maximum with 0": (loop("m = Max(rows, zeros) row = ReduceMax<keepdims=0>(m, zero)"), OTHER),
    "all bags so far": (loop(rows="o = Slice(ids, zero, end_1) rows = Gather(table, o)"), OTHER),
    "at most 20 ids": (loop(end="limit = Add(start, some) end = Min(limit, given_end)"), OTHER),
    "at most 100000 ids": (
        loop(end="limit = Add(start, many) end = Min(limit, given_end)"),
        "the number 100000 in it is larger than what is tried",
    ),
    "at most 20 bags": (loop(TOTAL + "late = Greater(i, some) row = Where(late, zeros, t)"), OTHER),
    "drops ids above 20": (
        pooling("l = Greater(own, some)", "k = Unsqueeze(l, one)", "m = Where(k, zeros, rows)"),
        OTHER,
    ),
    "drops id 20 only if positive": (
        pooling("l = Equal(own, some)", "k = Unsqueeze(l, one)", "m = Where(k, zeros, rows)"),
        OTHER,
    ),
    "normalized weights": (
        loop(
            WEIGHTED
            + """
            t = ReduceSum<keepdims=0>(weighted, zero)
            norm = ReduceSum<keepdims=0>(w, zero)
            row = Div(t, norm)""",
            inputs=WEIGHTS,
        ),
        OTHER,
    ),
    "bounded weights": (
        loop(
            """
            w = Slice(weights, start_1, end_1)
            low = Min(w, much)
            w_1 = Unsqueeze(low, one)
            m = Mul(rows, w_1)
            row = ReduceSum<keepdims=0>(m, zero)""",
            inputs=WEIGHTS,
        ),
        OTHER,
    ),
    "weighted maximum": (
        loop(WEIGHTED + "row = ReduceMax<keepdims=0>(weighted, zero)", inputs=WEIGHTS),
        OTHER,
    ),
    "another input": (loop(TOTAL + "row = Mul(t, scale)", inputs=", float scale"), ALONE),
    "two tables": (
        loop(
            "r = Gather(other, own) m = Mul(rows, r) row = ReduceSum<keepdims=0>(m, zero)",
            inputs=", float[50,4] other",
        ),
        ALONE,
    ),
    "hashes ids": (loop(rows="h = Mod(own, size) rows = Gather(table, h)"), ALONE),
    "tolerates unknown ids": (
        loop(
            rows="""
            top = ReduceMax<keepdims=0>(own)
            fits = Less(top, size)
            rows = If(fits) <
                then_branch = known () => (float[k,4] found) { found = Gather(table, own) },
                else_branch = new () => (float[1,4] none_found) {
                    none_found = Unsqueeze(zeros, zero)
                }
            >"""
        ),
        "an answer for ids outside the table",
    ),
}


@pytest.mark.parametrize("name", NOT_BAGS)
def test_left_alone(name: str) -> None:
    assert_unchanged(RaiseEmbeddingBag(), *NOT_BAGS[name])


def test_rows_of_ids() -> None:
    reason = f"{OTHER} gives what it gives for ids of shape [3, 6]"
    assert_unchanged(RaiseEmbeddingBag(), ROWS_OF_IDS.replace("FACTOR", "2"), reason)


NUMBERS = ", ".join(str(number) for number in range(45))
REASONS = {
    "does not run": (
        loop(TOTAL + "row = Mul(t, weights)", inputs=WEIGHTS),
        "Runtime does not run it",
    ),
    "seldom runs": (
        loop(rows="ninth = Gather(ids, eight) rows = Gather(table, own)").replace(
            "int64 some", "int64 eight = {8}, int64 some"
        ),
        "cases only",
    ),
    "other shape": (
        loop("row = ReduceSum<keepdims=1>(rows, zero)"),
        "it makes [3, 1, 4] of 3 bags",
    ),
    "not tried": (
        loop().replace("(float[50,4]", "(bfloat16[50,4]").replace("float[b,4]", "bfloat16[b,4]"),
        "tables of bfloat16",
    ),
    "no rows": (loop().replace("float[50,4]", "float[0,4]"), "its table has no rows"),
    "no bags": (loop().replace("int64[b]", "int64[0]"), "ids outside the table"),
    "no ids": (loop().replace("int64[n]", "int64[0]"), "ids outside the table"),
    "cut out": (
        loop(rows="unused = Mul(table, other) rows = Gather(table, own)").replace(
            "int64 some", "float[50,4] other, int64 some"
        ),
        "cannot be cut out of the graph",
    ),
    "too large": (
        loop(end="o = Mul(some, none) end = Add(given_end, o)").replace(
            "float[50,4]", f"float[{2**45},4]"
        ),
        "large",
    ),
    "ambiguous": (
        loop().replace("int64[n] ids, int64[b]", "int64[1] ids, int64[1]"),
        "it may be any of",
    ),
    "too many numbers": (
        loop(end="x = Gather(numbers, i) o = Mul(x, none) end = Add(given_end, o)").replace(
            "int64 some", f"int64[45] numbers = {{{NUMBERS}}}, int64 some"
        ),
        "any of the 45 integers in it could be padding",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_reasons(name: str) -> None:
    assert_unchanged(RaiseEmbeddingBag(), *REASONS[name])


def test_other_uses_of_the_loop() -> None:
    text = (
        loop().replace("Loop(b, yes)", "Loop(b, yes, none)").replace("pooled =", "last, pooled =")
    )
    text = text.replace("bool go)", "bool go, int64 seen)").replace(
        "(bool goes_on,", "(bool goes_on, int64 now,"
    )
    text = text.replace("goes_on =", "now = Identity(i) goes_on =")
    assert_unchanged(
        RaiseEmbeddingBag(),
        text.replace("=> (float[b,4] pooled)", "=> (float[b,4] pooled, int64 last)"),
    )
    assert_keeps_outputs(RaiseEmbeddingBag(), graph := parse(text), sizes={"n": 6, "b": 4})
    assert "graphopt::EmbeddingBag" in {node.op for node in graph.nodes}


def test_other_uses_of_the_sequence() -> None:
    collecting = """
    (float[9,4] table, int64[b,k] ids) => (float[b,4] pooled{OUTPUT})
    <int64[1] zero = {0}, int64 none = {0}, bool yes = {1}>
    {
        sizes = Shape(ids)
        b = Gather(sizes, none)
        empty = SequenceEmpty()
        all = Loop(b, yes, empty) <
            body = bag (int64 i, bool go, seq(float[1,4]) had) => (bool on, seq(float[1,4]) has) {
                own = Gather(ids, i)
                rows = Gather(table, own)
                row = ReduceSum(rows, zero)
                has = SequenceInsert(had, row)
                on = Identity(go)
            }
        >
        pooled = ConcatFromSequence<axis=0>(all)
        USE
    }"""
    alone = collecting.replace("{OUTPUT}", "").replace("USE", "")
    assert_keeps_outputs(RaiseEmbeddingBag(), graph := parse(alone))
    assert "graphopt::EmbeddingBag" in {node.op for node in graph.nodes}
    counted = collecting.replace("{OUTPUT}", ", int64 count").replace(
        "USE", "count = SequenceLength(all)"
    )
    assert_unchanged(RaiseEmbeddingBag(), counted)


def test_unusable_model() -> None:
    broken = Execution(b"not a model")
    assert broken({}) is None
    assert broken.complaint


def test_loop_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_execution, "SECONDS", 0.2)
    model = parse("""
        (float[2] x) => (float[2] y) <bool yes = {1}> {
            y = Loop(, yes, x) <
                body = b (int64 i, bool go, float[2] u) => (bool on, float[2] v) {
                    on = Identity(go)
                    v = Neg(u)
                }
            >
        }""")
    endless = Execution(onnx_io.to_proto(model).SerializeToString())
    assert endless({"x": np.zeros(2, np.float32)}) is None
    assert "terminate" in endless.complaint
