"""Integer tensors followed through shape arithmetic, in terms of the sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.ir.content import MAX_ELEMENTS, as_array, content_of, known_ints
from graphopt.testing import parse

HEAD = """(float[N,M,6] x, int64[2] unknown, float[N] f) => (float[] y)
    <int64[2,2] square0 = {0, 1, 1, 0}, int64[2] n31 = {3, 1}, int64[1] low = {-99},
     int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, int64 i7 = {7}, int64[1] v0 = {0},
     int64[1] v1 = {1}, int64[1] v2 = {2}, int64[1] m1 = {-1}, int64[2] p = {2, 3},
     int64[3] ends = {5, -1, 7}, bool yes = {1}, bool no = {0}, int64[2,2] square = {1, 2, 3, 4},
     int64 m7 = {-7}, int64[1] big = {300}, float half = {0.5}> """


def content(body: str) -> Any:
    """The content of value `a` as nested lists, with sizes as text."""
    graph = parse(f"{HEAD} {{ {body} y = Cast<to=1>(a) }}")
    (value,) = (v for node in graph.nodes for v in node.outputs if v.name == "a")
    if value.content is None:
        return None
    return np.vectorize(lambda e: e if isinstance(e, (int, bool)) else str(e), otypes=[object])(
        value.content
    ).tolist()


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("a = Shape(x)", ["N", "M", 6]),
        ("a = Shape<start=1, end=-1>(x)", ["M"]),
        ("a = Size(x)", "6*M*N"),
        ("s = Shape(x) a = Gather(s, i1)", "M"),
        ("s = Shape(x) a = Gather(s, m1)", [6]),
        ("s = Shape(x) a = Gather(s, square0)", [["N", "M"], ["M", "N"]]),
        ("s = Shape(x) a = Slice(s, v1, big)", ["M", 6]),
        ("s = Shape(x) a = Slice(s, m1, low, v0, m1)", [6, "M", "N"]),
        ("s = Shape(x) a = Concat<axis=0>(s, ends)", ["N", "M", 6, 5, -1, 7]),
        ("s = Shape(x) n = Gather(s, i0) a = Unsqueeze(n, v0)", ["N"]),
        ("s = Shape<end=1>(x) a = Squeeze(s)", "N"),
        ("s = Shape(x) a = Reshape(s, n31)", [["N"], ["M"], [6]]),
        ("s = Shape(x) a = Mul(s, i2)", ["2*N", "2*M", 12]),
        ("s = Shape(x) a = Add(s, ends)", ["N + 5", "M + -1", 13]),
        ("s = Shape(x) t = Sub(s, s) a = Neg(t)", [0, 0, 0]),
        ("s = Size(x) a = Div(s, i2)", "3*M*N"),
        ("s = Shape(x) a = Div(s, i7)", ["floordiv(N, 7)", "floordiv(M, 7)", 0]),
        ("a = Div(m7, i2)", -3),
        ("s = Shape(x) d = Cast<to=6>(s) a = Cast<to=7>(d)", ["N", "M", 6]),
        ("s = Shape(x) a = ReduceProd(s)", ["6*M*N"]),
        ("s = Shape(x) a = ReduceSum<keepdims=0>(s)", "M + N + 6"),
        ("s = Shape(x) a = ReduceMax(p)", [3]),
        ("s = Shape(x) a = Max(s, s)", ["N", "M", 6]),
        ("s = Shape(x) e = Equal(s, m1) a = Not(e)", [True, True, True]),
        ("s = Shape(x) e = Equal(s, m1) a = Where(e, i1, s)", ["N", "M", 6]),
        ("s = Size(x) a = GreaterOrEqual(s, i0)", True),
        ("s = Size(x) t = Add(s, i1) a = Less(t, i1)", False),
        ("s = Size(x) t = Add(s, i1) a = Less(t, i0)", False),
        ("a = And(yes, no)", False),
        ("a = Or(yes, no)", True),
        ("e = Equal(unknown, i0) a = And(e, no)", [False, False]),
        ("e = Equal(unknown, i0) a = Or(yes, e)", [True, True]),
        ("a = Range(i0, i7, i2)", [0, 2, 4, 6]),
        ("a = ConstantOfShape<value = int64[1] {4}>(p)", [[4, 4, 4], [4, 4, 4]]),
        ("a = Expand(i7, v2)", [7, 7]),
        ("a = Transpose(square)", [[1, 3], [2, 4]]),
        ("s = Shape(x) a = Identity(s)", ["N", "M", 6]),
        ("b = Cast<to=9>(p) a = Not(b)", [False, False]),
    ],
)
def test_what_is_known(body: str, wanted: Any) -> None:
    assert content(body) == wanted


@pytest.mark.parametrize(
    "body",
    [
        "a = Identity(unknown)",
        "a = Gather(unknown, i0)",
        "s = Shape(x) a = Gather(s, unknown)",
        "s = Shape(x) a = Equal(s, i1)",
        "s = Shape(x) n = Gather(s, i0) m = Gather(s, i1) a = Less(n, m)",
        "s = Shape(x) n = Gather(s, i0) t = Neg(n) a = Div(t, i2)",
        "a = ConstantOfShape<value = int64[1] {4}>(big)",
        "a = Div(i7, i0)",
        "s = Shape(x) n = Gather(s, i0) a = Cast<to=3>(n)",
        "s = Shape(x) a = Gather(s, i7)",
        "e = Equal(unknown, i0) a = And(e, yes)",
        "e = Equal(unknown, i0) a = Or(no, e)",
        "e = Equal(f, half) a = And(e, no)",
        "a = NonZero(p)",
        "a = Cast<to=7>(half)",
    ],
)
def test_what_depends_on_the_run_is_not(body: str) -> None:
    assert content(body) is None


def test_large_and_fractional_constants_are_not_followed() -> None:
    assert content_of(np.zeros(MAX_ELEMENTS, np.int64)) is not None
    assert content_of(np.zeros(MAX_ELEMENTS + 1, np.int64)) is None
    assert content_of(np.zeros(2, np.float32)) is None
    assert content_of(np.array([True]))[0] is True  # type: ignore[index]


def test_contents_become_arrays_only_where_they_fit() -> None:
    content = content_of(np.array([[1, 300]]))
    assert content is not None and known_ints(content) == [1, 300]
    assert as_array(content, "int8") is None
    array = as_array(content, "int32")
    assert array is not None and array.dtype == np.int32 and array.shape == (1, 2)
    assert known_ints(None) is None


def test_contents_follow_when_an_operand_changes() -> None:
    graph = parse("(float[N,4] x, float[7,4] z) => (int64[2] y) { h = Relu(x) y = Shape(h) }")
    assert str(graph.outputs[0].content.tolist()) == "[Sym(N), 4]"  # type: ignore[union-attr]
    graph.replace_uses(graph.inputs[0], graph.inputs[1])
    assert graph.outputs[0].content.tolist() == [7, 4]  # type: ignore[union-attr]
