"""Lookups that are added up become bags, whatever form the mask has; others stay."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.raise_pooling import RaisePooling
from graphopt.pipeline.base import PassContext
from graphopt.testing import (
    assert_keeps_outputs,
    assert_rewrites,
    assert_unchanged,
    parse,
    run_compiled,
    run_onnxruntime,
)

TEXT = """(int64[N,3] ids, int32[N,3] narrow, int64[N,3] others, float[N,3,1] mask, int64[N] flat)
    => (float[] y)
    <float[9,4] t, int64 pad = {0}, int32 pad32 = {0}, int64 far = {9}, int64[3] col = {-1, 3, 1},
     int64[1] first = {0}, int64[1] k = {1}, int64[1] last = {2}, float zero = {0},
     float tiny = {1e-9}, float one = {1}, float two = {2}, int64[2] flat2 = {-1, 3},
     int64[3] across = {-1, 1, 3}, int64[2] flat4 = {-1, 4}, int64 single = {1}> { BODY }"""

LOOK_UP = "e = Gather(t, ids)"
MASK = "q = Equal(ids, pad) o = Not(q) m = Cast<to=1>(o) r = Reshape(m, col)"
SUM = f"{LOOK_UP} {MASK} p = Mul(e, r) s = ReduceSum<keepdims=0>(p, k)"
COUNT = "c = ReduceSum<keepdims=1>(m, k)"
BAG = 'graphopt.EmbeddingBag<mode="MODE", empty=EMPTY, padding_idx=0, by_id=1>(t, ids)'


ACROSS = "q = Equal(ids, pad) o = Not(q) m = Cast<to=1>(o) r = Reshape(m, across)"
ORDERED = "o = Less(pad, ids) m = Cast<to=1>(o) r = Reshape(m, across)"


def text(body: str) -> str:
    return TEXT.replace("BODY", body)


def bag(mode: str = "sum", empty: str = "0.0") -> str:
    return BAG.replace("MODE", mode).replace("EMPTY", empty)


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (
            f"{LOOK_UP} y = ReduceSum<keepdims=0>(e, k)",
            'y = graphopt.EmbeddingBag<mode="sum", empty=0.0>(t, ids)',
        ),
        (
            f"{LOOK_UP} y = ReduceMean<keepdims=0>(e, k)",
            'y = graphopt.EmbeddingBag<mode="mean", empty=0.0>(t, ids)',
        ),
        (f"{LOOK_UP} {MASK} p = Mul(r, e) y = ReduceSum<keepdims=0>(p, k)", f"y = {bag()}"),
        (
            f"{LOOK_UP} q = Equal(pad, ids) c = Reshape(q, col) o = Not(c) p = Where(o, e, zero)"
            " y = ReduceSum<keepdims=0>(p, k)",
            f"y = {bag()}",
        ),
        (
            f"{LOOK_UP} q = Equal(ids, pad) c = Reshape(q, col) p = Where(c, zero, e)"
            " y = ReduceSum<keepdims=0>(p, k)",
            f"y = {bag()}",
        ),
        (
            "e = Gather(t, narrow) w = Cast<to=7>(narrow) q = Equal(w, pad) o = Not(q)"
            " m = Cast<to=1>(o) r = Reshape(m, col) p = Mul(e, r)"
            " y = ReduceSum<keepdims=0>(p, k)",
            f"y = {bag()}".replace("ids", "narrow"),
        ),
        (
            f"{LOOK_UP} {MASK} p = Mul(e, r) y = ReduceSum<keepdims=1>(p, k)",
            f"b = {bag()} y = Reshape(b, rows)",
        ),
        (f"{SUM} {COUNT} d = Add(c, tiny) y = Div(s, d)", f"y = {bag('mean')}"),
        (f"{SUM} {COUNT} d = Max(one, c) y = Div(s, d)", f"y = {bag('mean')}"),
        (f"{SUM} {COUNT} d = Clip(c, one) y = Div(s, d)", f"y = {bag('mean')}"),
        (
            f"{SUM} whole = Cast<to=7>(o) n = ReduceSum<keepdims=1>(whole, k) c = Cast<to=1>(n)"
            " d = Add(c, tiny) y = Div(s, d)",
            f"y = {bag('mean')}",
        ),
        (
            f"{SUM} c = ReduceSum<keepdims=0>(r, k) d = Add(tiny, c) y = Div(s, d)",
            f"y = {bag('mean')}",
        ),
        (
            f"{LOOK_UP} {MASK} p = Mul(e, r) s = ReduceSum<keepdims=1>(p, k)"
            " c = ReduceSum<keepdims=1>(r, k) d = Max(c, one) y = Div(s, d)",
            f"b = {bag('mean')} y = Reshape(b, rows)",
        ),
        (
            f"{SUM} whole = Cast<to=7>(o) n = ReduceSum<keepdims=1>(whole, k)"
            " f = Clip(n, single) d = Cast<to=1>(f) y = Div(s, d)",
            f"y = {bag('mean')}",
        ),
        (
            f"{LOOK_UP} {ACROSS} p = MatMul(r, e) c = ReduceSum<keepdims=1>(r, last)"
            " d = Add(c, tiny) y = Div(p, d)",
            f"b = {bag('mean')} y = Reshape(b, rows)",
        ),
        (
            f"{LOOK_UP} {ORDERED} p = MatMul(r, e) c = ReduceSum<keepdims=1>(r, last)"
            " d = Max(c, one) y = Div(p, d)",
            f"i = Max(ids, pad) b = {bag('mean').replace('ids', 'i')} y = Reshape(b, rows)",
        ),
        (
            f"{LOOK_UP} g = GreaterOrEqual(single, ids) c = Reshape(g, col) p = Where(c, zero, e)"
            " y = ReduceSum<keepdims=0>(p, k)",
            f"i = Max(ids, single) y = {bag().replace('ids', 'i').replace('idx=0', 'idx=1')}",
        ),
        (
            f"{LOOK_UP} g = GreaterOrEqual(ids, single) c = Reshape(g, col) p = Where(c, e, zero)"
            " y = ReduceSum<keepdims=0>(p, k)",
            f"i = Max(ids, pad) y = {bag().replace('ids', 'i')}",
        ),
        (
            f"{LOOK_UP} g = Less(ids, single) o = Not(g) c = Reshape(o, col) p = Where(c, e, zero)"
            " y = ReduceSum<keepdims=0>(p, k)",
            f"i = Max(ids, pad) y = {bag().replace('ids', 'i')}",
        ),
    ],
)
def test_forms(body: str, after: str) -> None:
    shape = "int64[3] rows = {-1, 1, 4}, int64 pad"
    assert_rewrites(RaisePooling(), text(body), text(after).replace("int64 pad", shape))


@pytest.mark.parametrize(
    ("quotient", "empty"),
    [("d = Add(c, tiny) y = Div(s, d)", 0.0), ("y = Div(s, c)", np.nan)],
)
def test_ids_that_read_padding_by_other_numbers_count(quotient: str, empty: float) -> None:
    ids = np.array([[0, 0, 0], [0, -9, 3], [-9, 5, 0], [1, 2, -1]])
    feeds = {"ids": ids}
    graph = parse(text(f"{SUM} {COUNT} {quotient}"))
    table = next(v.const for v in graph.constants() if v.const is not None and v.const.ndim == 2)
    wanted = run_onnxruntime(graph, with_all(graph, feeds))["y"]
    assert RaisePooling().run(graph, PassContext())
    assert [node.op_type for node in graph.nodes if node.domain] == ["EmbeddingBag"]
    for run in (run_onnxruntime, run_compiled):
        found = run(graph, with_all(graph, feeds))["y"]
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_array_equal(wanted[0], np.full(4, empty))
    np.testing.assert_allclose(wanted[1], (table[0] + table[3]) / 2, rtol=1e-6)


def with_all(graph, feeds):  # type: ignore[no-untyped-def]
    """`feeds`, and zeros for the other inputs."""
    shapes = {v.name: [4, *v.tensor.dims[1:]] for v in graph.inputs}
    dtypes = {v.name: v.dtype for v in graph.inputs}
    return {name: np.zeros(s, dtypes[name]) for name, s in shapes.items()} | feeds


def test_ids_below_padding_are_padding_where_they_are_compared_by_order() -> None:
    graph = parse(text(f"{LOOK_UP} {ORDERED} p = MatMul(r, e) y = Reshape(p, flat4)"))
    feeds = with_all(graph, {"ids": np.array([[0, -1, 3], [-9, -2, -1], [8, 0, 1], [0, 0, 0]])})
    wanted = run_onnxruntime(graph, feeds)["y"]
    assert RaisePooling().run(graph, PassContext())
    for run in (run_onnxruntime, run_compiled):
        np.testing.assert_allclose(run(graph, feeds)["y"], wanted, rtol=1e-6)
    feeds["ids"][0, 1] = -10  # no row, which the mask leaves out all the same
    for run in (run_onnxruntime, run_compiled):
        np.testing.assert_allclose(run(graph, feeds)["y"], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "e = Gather(t, ids) r = Reshape(mask, across) y = MatMul(r, e)",
            "compare each id with a constant",
        ),
        (f"e = Gather(t, others) {ACROSS} y = MatMul(r, e)", "one of other ids"),
        ("e = Gather(t, flat) y = ReduceSum(e, k)", "ids in a bag"),
        (f"{LOOK_UP} y = ReduceSum(e, last)", "add up the rows"),
        ("e = Gather<axis=1>(t, ids) y = ReduceSum(e, k)", "rows of a float32 matrix"),
        (f"{LOOK_UP} p = Mul(e, mask) y = ReduceSum(p, k)", "compare each id"),
        (
            SUM.replace("Equal(ids", "Equal(others") + " y = Relu(s)",
            "one of other ids",
        ),
        (f"{SUM.replace('pad)', 'far)')} y = Relu(s)", "no row of the table"),
        (f"{SUM.replace('o = Not(q)', '').replace('(o)', '(q)')} y = Relu(s)", "padding alone"),
        (
            f"{LOOK_UP} q = Equal(ids, pad) c = Reshape(q, col) p = Where(c, e, zero)"
            " y = ReduceSum(p, k)",
            "at padding is not 0",
        ),
        (
            f"{LOOK_UP} q = Equal(ids, pad) c = Reshape(q, col) p = Where(c, one, e)"
            " y = ReduceSum(p, k)",
            "at padding is not 0",
        ),
    ],
)
def test_others_stay(body: str, reason: str) -> None:
    assert_unchanged(RaisePooling(), text(body), reason)


@pytest.mark.parametrize(
    ("divisor", "reason"),
    [
        ("d = Add(c, one) y = Div(s, d)", "number of ids"),
        ("d = Max(c, two) y = Div(s, d)", "number of ids"),
        ("d = Clip(c, one, two) y = Div(s, d)", "number of ids"),
        ("y = Div(s, two)", "number of ids"),
        (
            "q2 = Equal(others, pad) o2 = Not(q2) m2 = Cast<to=1>(o2)"
            " c2 = ReduceSum<keepdims=1>(m2, k) y = Div(s, c2)",
            "counted are not those",
        ),
    ],
)
def test_other_divisors_stay(divisor: str, reason: str) -> None:
    graph, ctx = parse(text(f"{SUM} {COUNT} {divisor}")), PassContext()
    assert RaisePooling().run(graph, ctx)
    assert [node.attrs["mode"] for node in graph.nodes if node.domain] == ["sum"]
    assert any(reason in str(found) for found in ctx.stats.refusals)


def test_a_table_that_is_not_finite_stays() -> None:
    graph = parse(text(f"{SUM} y = Relu(s)"))
    table = next(v for v in graph.constants() if v.const is not None and v.const.ndim == 2)
    broken = table.const.copy()  # type: ignore[union-attr]
    broken[1, 0] = np.inf
    graph.replace_uses(table, graph.constant(broken))
    assert not RaisePooling().run(graph, PassContext())


STRIDED = """(int64[N,3] ids, float[N,3] weights) => (float[] y)
    <float[9,4] t, int64 zero = {{0}}, int64 k = {{{length}}}, int64[1] flat = {{-1}}> {{
    f = Reshape(ids, flat) w = Reshape(weights, flat) n = Size(f) o = Range(zero, n, k)
    y = graphopt.EmbeddingBag<mode="sum"{more}>(t, f, o{given}) }}"""


@pytest.mark.parametrize(("length", "given"), [(3, ""), (3, ", w"), (1, "")])
def test_bags_of_one_length_lose_their_offsets(length: int, given: str) -> None:
    graph = parse(STRIDED.format(length=length, more="", given=given))
    assert_keeps_outputs(RaisePooling(), graph)
    (bag,) = [node for node in graph.nodes if node.domain]
    assert bag.input(2) is None
    assert not any(node.op == "Range" for node in graph.nodes)


@pytest.mark.parametrize(("length", "more"), [(2, ""), (3, ", include_last_offset=1")])
def test_other_offsets_stay(length: int, more: str) -> None:
    source = STRIDED.format(length=length, more=more, given="")
    assert_unchanged(RaisePooling(), source, "of one length")
