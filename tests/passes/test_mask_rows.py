"""Rows that are picked, computed and put back are all computed."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.passes.mask_rows import MaskRows
from graphopt.testing import (
    assert_keeps_outputs,
    assert_rewrites,
    assert_same_outputs,
    assert_unchanged,
    parse,
    random_inputs,
    run_onnxruntime,
)

HEAD = """(float[N,3,4] x, int64[N] count, int64[N] other, int64[N] ids) => (float[] y)
    <float[4,8] w, int64 none = {0}, int64 one = {1}, int64[1] first = {0}, int64[2] row = {3, 8},
    int64[1] wide = {8}, int64[2] flat8 = {-1, 8}, int64 three = {3}, int64[1] flat = {-1},
    int64[1] middle = {1}, int64[3] column = {-1, 1, 1},
    float zero = {0}, float[9,8] table, float[1,24,4] wx, float[1,24,8] r> {
    has = Greater(count, none)
    picked = NonZero(has)
    rows = Transpose(picked)
    s = GatherND(x, rows)
    n = Shape(count)
    shape = Concat<axis=0>(n, row)
    empty = ConstantOfShape(shape)
"""
FLAT = "flatshape = Concat<axis=0>(n, wide) flatempty = ConstantOfShape(flatshape) "
GIVEN = HEAD.split("picked =")[0]


def test_element_by_element() -> None:
    """PyTorch's masked_scatter: as many elements of the flat results as the mask has."""
    body = """h = MatMul(s, w) m = Reshape(has, column) all = Expand(m, shape) each = NonZero(all)
        places = Transpose(each) f = Reshape(h, flat) c = Shape<start=1>(each)
        u = Slice(f, first, c, first) y = ScatterND(empty, places, u) }"""
    after = "h = MatMul(x, w) m = Reshape(has, column) y = Where(m, h, zero) }"
    assert_rewrites(MaskRows(), HEAD + body, GIVEN + after)


def test_recurrent_layer_and_its_initial_state() -> None:
    body = """few = GatherND(count, rows)
        t = Transpose<perm=[1,0,2]>(s) m = Shape<start=1>(picked)
        size = Concat<axis=0>(middle, m, wide) start = ConstantOfShape(size)
        short = Clip(few, one, three) steps = Cast<to=6>(short)
        h, last = GRU<hidden_size=8>(t, wx, r, , steps, start)
        u = Reshape(last, flat8) y = ScatterND(flatempty, rows, u) }"""
    graph = parse(HEAD + FLAT + body)
    assert_keeps_outputs(MaskRows(), graph)
    ops = {node.op for node in graph.nodes}
    assert "GRU" in ops and not ops & {"NonZero", "GatherND", "ScatterND"}


def test_rows_picked_element_by_element() -> None:
    """PyTorch's masked_select, brought back to rows."""
    body = """m = Reshape(has, column) all = Expand(m, size) each = NonZero(all)
        places = Transpose(each) few = GatherND(x, places) s = Reshape(few, threes)
        y = ReduceSum(s, flat) }"""
    given = """(float[N,3,4] x, bool[N] has) => (float[] y) <int64[1] flat = {-1},
        int64[3] column = {-1, 1, 1}, int64[3] threes = {-1, 3, 4}> { """
    whole = "size = Shape(x) "
    after = """picked = NonZero(has) rows = Reshape(picked, flat) few = Gather<axis=0>(x, rows)
        g = Reshape(few, flat) s = Reshape(g, threes) y = ReduceSum(s, flat) }"""
    assert_rewrites(MaskRows(), given + whole + body, given + after)


def test_places_in_another_order_are_not_rows() -> None:
    body = """m = Reshape(has, column) all = Expand(m, shape) each = NonZero(all)
        places = Reshape(each, threes) few = GatherND(x, places) y = Identity(few) }"""
    given = """(float[N,3,4] x, bool[N] has) => (float[] y) <int64[3] column = {-1, 1, 1},
        int64[2] threes = {-1, 3}> { shape = Shape(x) """
    assert_unchanged(MaskRows(), given + body)


@pytest.mark.parametrize("axis", [-1, 1])
def test_an_axis_of_one_beside_the_rows(axis: int) -> None:
    """As attention with one query leaves it."""
    body = f"""h = MatMul(s, w) a = Constant<value_ints=[{axis}]>() k = ReduceSum(h, a)
        m = Reshape(has, pair) all = Expand(m, size) each = NonZero(all) places = Transpose(each)
        f = Reshape(k, flat) c = Shape<start=1>(each) u = Slice(f, first, c, first)
        e = ConstantOfShape(size) y = ScatterND(e, places, u) }}"""
    width = 3 if axis == -1 else 8
    head = HEAD.replace(
        "int64[1] wide", f"int64[2] pair = {{-1, 1}}, int64[1] wd = {{{width}}}, int64[1] wide"
    )
    graph = parse(head + "size = Concat<axis=0>(n, wd) " + body)
    assert_keeps_outputs(MaskRows(), graph)
    assert not {node.op for node in graph.nodes} & {"NonZero", "ScatterND"}


def test_rows_that_are_left_out_take_one_step() -> None:
    """Their own number may be one that the layer refuses: here it is 0, or below."""
    body = """c = GatherND(count, rows) b = Min(c, three) steps = Cast<to=6>(b)
        t = Transpose<perm=[1,0,2]>(s) h, last = GRU<hidden_size=8>(t, wx, r, , steps)
        u = Reshape(last, flat8) y = ScatterND(flatempty, rows, u) }"""
    graph = parse(HEAD + FLAT + body)
    feeds = random_inputs(graph, {"N": 5}) | {"count": np.array([2, -1, 0, 1, 9])}
    wanted = run_onnxruntime(graph, feeds)
    assert_keeps_outputs(MaskRows(), graph)
    assert not {node.op for node in graph.nodes} & {"NonZero", "GatherND", "ScatterND"}
    assert_same_outputs(run_onnxruntime(graph, feeds), wanted, MaskRows.fidelity)


def test_no_step_to_take() -> None:
    body = """c = GatherND(count, rows) steps = Cast<to=6>(c) t = Transpose<perm=[1,0,2]>(s)
        h, last = GRU<hidden_size=8>(t, wx, r, , steps) u = Reshape(last, flat8)
        y = ScatterND(flatempty, rows, u) }"""
    head = HEAD.replace("float[N,3,4] x", "float[N,T,4] x")
    assert_unchanged(MaskRows(), head + FLAT + body, "may have no steps")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("h = Softmax<axis=0>(s) g = MatMul(h, w) y = ScatterND(empty, rows, g)", "same row"),
        (
            "g = MatMul(s, w) data = MatMul(x, w) y = ScatterND(data, rows, g)",
            "computed in another way",
        ),
        (
            """g = MatMul(s, w) e1 = ScatterND(empty, rows, g) more = Greater(other, none)
            p2 = NonZero(more) r2 = Transpose(p2) s2 = GatherND(x, r2) g2 = MatMul(s2, w)
            y = ScatterND(e1, r2, g2)""",
            "computed in another way",
        ),
        (
            "i = GatherND(ids, rows) g = Gather(table, i) y = ScatterND(flatempty, rows, g)",
            "may be in no table",
        ),
        (
            """c = GatherND(count, rows) i = GatherND(ids, rows) d = Div(i, c) k = Cast<to=1>(d)
            e = ConstantOfShape(n) y = ScatterND(e, rows, k)""",
            "divide by zero",
        ),
        (
            """more = Greater(other, none) p2 = NonZero(more) r2 = Transpose(p2)
            s2 = GatherND(x, r2) g = MatMul(s2, w) y = ScatterND(empty, rows, g)""",
            "not the rows that were picked",
        ),
        ('g = MatMul(s, w) y = ScatterND<reduction="add">(empty, rows, g)', None),
    ],
)
def test_others_stay(body: str, reason: str | None) -> None:
    assert_unchanged(MaskRows(), f"{HEAD}{FLAT}{body} }}", reason)
