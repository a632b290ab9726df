"""Concatenations in one level, of whole values."""

from __future__ import annotations

import pytest

from graphopt.passes.simplify_concats import SimplifyConcats
from graphopt.testing import assert_rewrites, assert_unchanged

SIGNATURE = "(float[N,2] a, float[N,3] b, float[N,4] c) => (float[] y)"


def test_nested_concatenations_are_one() -> None:
    before = SIGNATURE + "{ ab = Concat<axis=1>(a, b) u = Concat<axis=-1>(ab, c) y = Neg(u) }"
    after = SIGNATURE + "{ u = Concat<axis=1>(a, b, c) y = Neg(u) }"
    assert_rewrites(SimplifyConcats(), before, after)


@pytest.mark.parametrize(
    "body",
    [
        "p = Concat<axis=0>(a, a) q = Concat<axis=0>(b, b) y = Concat<axis=1>(p, q)",
        "u = Relu(a) y = Concat<axis=1>(u, b)",
    ],
)
def test_concatenations_of_other_axes_stay(body: str) -> None:
    assert_unchanged(SimplifyConcats(), f"{SIGNATURE} {{ {body} }}", "of its own")


def test_only_what_nobody_else_reads_is_flattened() -> None:
    start = "ab = Concat<axis=1>(a, b) z = Relu(ab) "
    before = start + "u = Concat<axis=1>(ab, c) y = Concat<axis=1>(u, z)"
    after = start + "y = Concat<axis=1>(ab, c, z)"
    texts = [f"{SIGNATURE} {{ {body} }}" for body in (before, after)]
    assert_rewrites(SimplifyConcats(), *texts)


def test_an_inner_concatenation_that_is_an_output_stays() -> None:
    text = """(float[N,2] a, float[N,3] b) => (float[] ab, float[] y) {
        ab = Concat<axis=1>(a, b)
        y = Concat<axis=1>(ab, a)
    }"""
    assert_unchanged(SimplifyConcats(), text, "of its own")


def test_empty_operands_go() -> None:
    text = """(float[N,2] a, float[N,3] b) => (float[] y) <int64[1] s = {1}, int64[1] x = {1}> {
        e = Slice(a, s, s, x)
        u = Concat<axis=1>(a, e, b)
        y = Neg(u)
    }"""
    after = "(float[N,2] a, float[N,3] b) => (float[] y) { u = Concat<axis=1>(a, b) y = Neg(u) }"
    assert_rewrites(SimplifyConcats(), text, after)


SLICES = """(float[N,9] x, float[N,3] z) => ({outputs})
    <int64[1] i0 = {{0}}, int64[1] i2 = {{2}}, int64[1] i5 = {{5}}, int64[1] i9 = {{9}},
     int64[1] a = {{1}}> {{
    {body} }}"""


def slices(body: str, outputs: str = "float[] y") -> str:
    return SLICES.format(body=body, outputs=outputs)


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (
            "u = Slice(x, i0, i2, a) v = Slice(x, i2, i5, a) "
            "w = Concat<axis=1>(z, u, v) y = Neg(w)",
            "u = Slice(x, i0, i5, a) w = Concat<axis=1>(z, u) y = Neg(w)",
        ),
        (
            "u = Slice(x, i0, i2, a) v = Slice(x, i2, i9, a) w = Concat<axis=1>(u, v) y = Neg(w)",
            "y = Neg(x)",
        ),
        (
            "u = Slice(x, i2, i5, a) v = Slice(x, i5, i9, a) "
            "w = Concat<axis=1>(u, v, z) y = Neg(w)",
            "u = Slice(x, i2, i9, a) w = Concat<axis=1>(u, z) y = Neg(w)",
        ),
    ],
)
def test_neighbouring_slices_are_one(body: str, after: str) -> None:
    assert_rewrites(SimplifyConcats(), slices(body), slices(after))


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("u = Slice(x, i2, i5, a) v = Slice(x, i0, i2, a) y = Concat<axis=1>(u, v)", "float[] y"),
        ("u = Slice(x, i0, i2, a) v = Slice(x, i5, i9, a) y = Concat<axis=1>(u, v)", "float[] y"),
        ("u = Slice(x, i0, i2, a) v = Slice(x, i2, i5, i0) y = Concat<axis=1>(u, z)", "float[] y"),
        (
            "u = Slice(x, i0, i2, a) v = Slice(x, i2, i5, a) y = Concat<axis=1>(u, v)",
            "float[] y, float[] u",
        ),
    ],
)
def test_other_slices_stay(body: str, outputs: str) -> None:
    assert_unchanged(SimplifyConcats(), slices(body, outputs), "neighbouring slices")


def test_a_split_put_together_again_goes() -> None:
    text = """(float[N,6] x) => (float[] y) <int64[3] s = {{1, 2, 3}}> {{
        p, q, r = Split<axis=1>(x, s)
        u = Concat<axis={}>({})
        y = Neg(u)
    }}"""
    after = "(float[N,6] x) => (float[] y) { y = Neg(x) }"
    assert_rewrites(SimplifyConcats(), text.format(-1, "p, q, r"), after)
    assert_unchanged(SimplifyConcats(), text.format(1, "p, r, q"), "in order")
    assert_unchanged(SimplifyConcats(), text.format(1, "p, q"), "in order")


def test_a_split_joined_along_another_axis_stays() -> None:
    text = """(float[4,6] x) => (float[] y) <int64[2] s = {3, 3}> {
        p, q = Split<axis=1>(x, s)
        u = Concat<axis=0>(p, q)
        y = Neg(u)
    }"""
    assert_unchanged(SimplifyConcats(), text, "another axis")


STACK = """(float[N,4] a, float[N,4] b) => ({outputs})
    <int64[3] square = {{-1, 2, 2}}, int64[2] flat = {{-1, 8}}, int64[2] turned = {{-1, 4}}> {{
    u = Reshape(a, square)
    v = Reshape(b, square)
    s = Concat<axis=1>(u, v)
    {body} }}"""


def test_a_flattened_stack_is_a_concatenation() -> None:
    before = STACK.format(body="f = Reshape(s, flat) y = Neg(f)", outputs="float[] y")
    wanted = """(float[N,4] a, float[N,4] b) => (float[] y) <int64[2] t = {-1, 4}> {
        u = Reshape(a, square)
        p = Reshape(u, t)
        v = Reshape(b, square)
        q = Reshape(v, t)
        f = Concat<axis=1>(p, q)
        y = Neg(f)
    }""".replace("<int64[2] t", "<int64[3] square = {-1, 2, 2}, int64[2] t")
    assert_rewrites(SimplifyConcats(), before, wanted)


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        ("f = Reshape(s, turned) y = Neg(f)", "float[] y", "more than flattening"),
        (
            "f = Reshape(s, flat) y = Neg(f)",
            "float[] y, float[] u",
            "no reshape that can be undone",
        ),
        ("f = Reshape(s, flat) y = Neg(f)", "float[] y, float[] s", "also read elsewhere"),
    ],
)
def test_other_stacks_stay(body: str, outputs: str, reason: str) -> None:
    assert_unchanged(SimplifyConcats(), STACK.format(body=body, outputs=outputs), reason)


def test_what_is_also_stacked_is_joined_once() -> None:
    text = """(float[N,1,3] a, float[N,1,3] b) => (float[] y, float[] z) {{
        s = Concat<axis=1>(a, b)
        y = Neg(s)
        {}
        z = Exp(t)
    }}"""
    before = text.format("t = Concat<axis=-1>(a, b)")
    after = text.format("r = Concat<axis=1>(a, b) t = Reshape(r, shape)").replace(
        ") {\n        s", ") <int64[3] shape = {-1, 1, 6}> {\n        s"
    )
    assert_rewrites(SimplifyConcats(), before, after)
    alone = before.replace("s = Concat<axis=1>(a, b)", "s = Concat<axis=0>(a, b)")
    assert_unchanged(SimplifyConcats(), alone, "not also stacked")
    narrow = "(float[N,1,3] a, float[N,1,2] b) => (float[] z) { z = Concat<axis=2>(a, b) }"
    assert_unchanged(SimplifyConcats(), narrow, "not also stacked")


ROWS = """(float[N,4] a, float[N,4] b, float[N,3,4] c) => ({outputs}) <int64[3] up = {{-1, 1, 4}},
    int64[4] high = {{-1, 1, 3, 4}}, int64[3] two = {{-1, 2, 4}}, int64[4] both = {{-1, 2, 3, 4}},
    int64[3] tall = {{-1, 4, 1}}, int64[1] i = {{0}}, int64[1] j = {{1}}> {{ {body} }}"""
UP = "u = Reshape(a, up) v = Reshape(b, up) s = Concat<axis=1>(u, v) "


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (UP + "y = Neg(s)", "t = Concat<axis=1>(a, b) s = Reshape(t, two) y = Neg(s)"),
        (
            "u = Reshape(c, high) s = Concat<axis=-3>(u, u) y = Neg(s)",
            "t = Concat<axis=1>(c, c) s = Reshape(t, both) y = Neg(s)",
        ),
    ],
)
def test_stacked_rows_are_joined_and_reshaped(body: str, after: str) -> None:
    texts = (ROWS.format(body=text, outputs="float[] y") for text in (body, after))
    assert_rewrites(SimplifyConcats(), *texts)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (UP + "y = Slice(s, i, j, j)", "parts of it are read"),
        ("u = Reshape(a, up) s = Concat<axis=1>(u, c) y = Neg(s)", None),
        ("u = Reshape(a, tall) v = Reshape(b, tall) s = Concat<axis=2>(u, v) y = Neg(s)", None),
    ],
)
def test_rows_that_stay(body: str, reason: str | None) -> None:
    assert_unchanged(SimplifyConcats(), ROWS.format(body=body, outputs="float[] y"), reason)


JOINED = "(float[N,4] a, float[N,4] b, float[N,3] c) => (float[] y, float[] z) {{ {} }}"


def test_what_is_joined_anyway_is_joined_once() -> None:
    before = "s = Concat<axis=1>(a, b) y = Neg(s) t = Concat<axis=-1>(a, b, c) z = Exp(t)"
    after = "s = Concat<axis=1>(a, b) y = Neg(s) t = Concat<axis=1>(s, c) z = Exp(t)"
    assert_rewrites(SimplifyConcats(), JOINED.format(before), JOINED.format(after))


@pytest.mark.parametrize(
    "body",
    [
        "t = Concat<axis=1>(a, b, c) z = Exp(t) s = Concat<axis=1>(a, b) y = Neg(s)",
        "s = Concat<axis=1>(b, a) y = Neg(s) t = Concat<axis=1>(b, c, a) z = Exp(t)",
        "s = Concat<axis=0>(a, b) y = Neg(s) t = Concat<axis=1>(a, b, c) z = Exp(t)",
    ],
)
def test_what_is_not_joined_before_stays(body: str) -> None:
    assert_unchanged(SimplifyConcats(), JOINED.format(body), "no operand is a concatenation")


POSITIONS = """(float[{shape}] s) => (float[] y) <int64 zero = {{0}}, int64 one = {{1}}> {{
    a = Gather<axis={axis}>(s, {first}) b = Gather<axis={axis}>(s, one)
    c = Concat<axis={join}>(a, b) y = Neg(c) }}"""


def positions(shape: str = "2,N,3", axis: int = 0, first: str = "zero", join: int = 1) -> str:
    return POSITIONS.format(shape=shape, axis=axis, first=first, join=join)


@pytest.mark.parametrize(
    ("before", "turned"),
    [
        (positions(), "t = Transpose<perm=[1,0,2]>(s)"),
        (positions("N,2,3", axis=1), ""),
    ],
)
def test_all_positions_side_by_side_are_a_reshape(before: str, turned: str) -> None:
    shape = before[before.index("[") + 1 : before.index("]")]
    after = f"""(float[{shape}] s) => (float[] y) <int64[2] flat = {{-1, 6}}> {{
        {turned} c = Reshape({"t" if turned else "s"}, flat) y = Neg(c) }}"""
    assert_rewrites(SimplifyConcats(), before, after)


@pytest.mark.parametrize(
    "body",
    [
        positions("4,N,3"),
        positions(first="one"),
        positions("2,N,3", join=0),
        positions("2,N,3,2"),
        positions("N,N,3"),
    ],
)
def test_other_positions_stay(body: str) -> None:
    assert_unchanged(SimplifyConcats(), body)


SPLIT = """(float[N,3,8] x, float[2,N,3,4] h, float[4,6] m) => ({outputs})
    <int64[4] first = {{1, -1, 3, 4}}, int64[4] second = {{-1, 1, 3, 4}},
     int64[2] uneven = {{3, 5}}, int64[4] one = {{1, -1, 3, 8}}, int64[3] halves = {{2, 2, 6}},
     int64[2] wide = {{2, 12}}> {{
    {body} }}"""
HEADS = "p, q = Split<axis=0, num_outputs=2>(h) "


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (
            HEADS + "y = Concat<axis=-1>(p, q)",
            "t = Transpose<perm=[1, 2, 0, 3]>(h) y = Reshape(t, one)",
        ),
        (
            HEADS + "a = Reshape(p, second) b = Reshape(q, second) y = Concat<axis=1>(a, b)",
            "y = Transpose<perm=[1, 0, 2, 3]>(h)",
        ),
        (
            "p, q = Split<axis=0, num_outputs=2>(m) y = Concat<axis=1>(p, q)",
            "r = Reshape(m, halves) t = Transpose<perm=[1, 0, 2]>(r) y = Reshape(t, wide)",
        ),
    ],
)
def test_parts_joined_further_in_are_turned(body: str, after: str) -> None:
    texts = [SPLIT.format(outputs="float[] y", body=text) for text in (body, after)]
    assert_rewrites(SimplifyConcats(), *texts)


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        (
            """p, q = Split<axis=2, num_outputs=2>(x) a = Reshape(p, first) b = Reshape(q, first)
               y = Concat<axis=0>(a, b)""",
            "float[] y",
            "before that which was split",
        ),
        (HEADS + "y = Concat<axis=2>(q, p)", "float[] y", None),
        (HEADS + "y = Concat<axis=2>(p, q) z = Neg(q)", "float[] y, float[] z", "read elsewhere"),
        ("p, q = Split<axis=2>(x, uneven) y = Concat<axis=1>(q, q)", "float[] y", None),
    ],
)
def test_parts_that_are_not_joined_further_in_stay(
    body: str, outputs: str, reason: str | None
) -> None:
    assert_unchanged(SimplifyConcats(), SPLIT.format(outputs=outputs, body=body), reason)
