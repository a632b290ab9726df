"""Expansions go where the sizes are proved to come out the same."""

from __future__ import annotations

import pytest

from graphopt.passes.remove_broadcasts import RemoveBroadcasts
from graphopt.testing import assert_rewrites, assert_unchanged

ATTENTION = """(float[N,1,4] q, float[N,20,4] k) => (float[] y)
    <int64[3] r = {{1, 20, 1}}, int64[3] full = {{1, 20, 4}}, int64 i = {{0}},
     int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[2] rest = {{20, 4}}, float f = {{3}}> {{
    {} y = Neg(u) }}"""


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"])
@pytest.mark.parametrize("expand", ["Tile(q, r)", "Expand(q, r)", "Expand(q, full)"])
def test_binary_ops_broadcast_by_themselves(op: str, expand: str) -> None:
    before = ATTENTION.format(f"p = Abs(k) t = {expand} u = {op}(t, p)")
    after = ATTENTION.format(f"p = Abs(k) u = {op}(q, p)")
    assert_rewrites(RemoveBroadcasts(), before, after)


def test_a_computed_shape_with_the_batch_goes_too() -> None:
    shape = "s = Shape(k) n = Gather(s, i) n1 = Unsqueeze(n, zero) t = Concat<axis=0>(n1, rest) "
    before = ATTENTION.format(shape + "e = Expand(q, t) u = Mul(k, e)")
    assert_rewrites(RemoveBroadcasts(), before, ATTENTION.format("u = Mul(k, q)"))


def test_where_takes_the_condition_unexpanded() -> None:
    text = """(bool[N,1] c, float[N,5] a, float[N,5] b) => (float[] y) <int64[2] s = {{1, 5}}> {{
        {} u = Where({}, a, b) y = Neg(u) }}"""
    before, after = text.format("e = Expand(c, s)", "e"), text.format("", "c")
    assert_rewrites(RemoveBroadcasts(), before, after)


def test_a_filled_tensor_becomes_a_number() -> None:
    before = """(float[N,4] x) => (float[N,4] y) {
        s = Shape(x)
        ones = ConstantOfShape<value = float[1] {2}>(s)
        u = Mul(x, ones)
        y = Neg(u)
    }"""
    after = "(float[N,4] x) => (float[N,4] y) <float two = {2}> { u = Mul(x, two) y = Neg(u) }"
    assert_rewrites(RemoveBroadcasts(), before, after)


@pytest.mark.parametrize(
    "body",
    [
        "e = Expand(q, r) u = Relu(e)",
        "e = Expand(q, r) u = Mul(e, f)",
    ],
)
def test_an_expansion_that_makes_the_result_larger_stays(body: str) -> None:
    assert_unchanged(RemoveBroadcasts(), ATTENTION.format(body))


def test_unequal_unknown_sizes_keep_their_expansion() -> None:
    text = """(float[N,1] x, float[M,4] z, int64[2] s) => (float[] y) {
        e = Expand(x, s)
        u = Add(e, z)
        y = Neg(u)
    }"""
    assert_unchanged(RemoveBroadcasts(), text)


def test_an_expansion_that_others_read_stays_for_them() -> None:
    before = ATTENTION.format("e = Expand(q, r) p = Relu(e) m = Mul(e, k) u = Add(p, m)")
    after = ATTENTION.format("e = Expand(q, r) p = Relu(e) m = Mul(q, k) u = Add(p, m)")
    assert_rewrites(RemoveBroadcasts(), before, after)


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("one1 = Expand(k, one) u = Exp(one1)", "u = Exp(k)"),
        ("a = Expand(q, r) b = Expand(a, r) u = Exp(b)", "b = Expand(q, r) u = Exp(b)"),
        ("a = Tile(q, r) u = Exp(a)", "a = Expand(q, r) u = Exp(a)"),
    ],
)
def test_expansions_in_one_form(body: str, after: str) -> None:
    assert_rewrites(RemoveBroadcasts(), ATTENTION.format(body), ATTENTION.format(after))


def test_a_computed_expansion_is_written_with_constants_where_the_batch_fits() -> None:
    before = """(float[N,1,4] x) => (float[N,20,4] y) <int64[2] rest = {20, 4}> {
        n = Shape<start=0, end=1>(x)
        s = Concat<axis=0>(n, rest)
        e = Expand(x, s)
        y = Exp(e)
    }"""
    after = """(float[N,1,4] x) => (float[N,20,4] y) <int64[3] s = {1, 20, 1}> {
        e = Expand(x, s)
        y = Exp(e)
    }"""
    assert_rewrites(RemoveBroadcasts(), before, after)


@pytest.mark.parametrize(
    ("signature", "body", "reason"),
    [
        ("(float[N,2] x)", "u = Tile(x, r)", "longer than 1"),
        ("(float[N,2] x, int64[2] t)", "u = Tile(x, t)", "not known"),
        ("(float[1,2] x, int64[2] t)", "u = Expand(x, t)", "run time"),
        ("(float[N,1] x)", "a = Expand(x, wide) u = Expand(a, r)", "how far"),
    ],
)
def test_repeats_and_unknown_shapes_stay(signature: str, body: str, reason: str) -> None:
    text = f"""{signature} => (float[] y) <int64[2] r = {{1, 2}}, int64[3] wide = {{3, 1, 1}}> {{
        {body} y = Neg(u) }}"""
    assert_unchanged(RemoveBroadcasts(), text, reason)


MASK = """(float[N,6] m, float[N,6,4] x) => (float[] y)
    <int64[4] s = {-1, 6, 1, 1}, int64[4] e = {1, 1, 1, 4}, int64[3] r = {-1, 6, 4}> {
    a = Reshape(m, s) b = Expand(a, e) c = Reshape(b, r) y = Mul(x, c) }"""


def test_reshapes_of_unit_axes_come_first() -> None:
    after = """(float[N,6] m, float[N,6,4] x) => (float[] y)
        <int64[4] s = {-1, 6, 1, 1}, int64[3] t = {-1, 6, 1}> {
        a = Reshape(m, s) c = Reshape(a, t) y = Mul(x, c) }"""
    assert_rewrites(RemoveBroadcasts(), MASK, after)
    merged = MASK.replace("{-1, 6, 4}", "{-1, 24}").replace("[3] r", "[2] r")
    merged = merged.replace("float[N,6,4] x", "float[N,24] x")
    assert_unchanged(RemoveBroadcasts(), merged, "does more than adding or dropping")
    shared = MASK.replace("(float[] y)", "(float[] y, float[] b)")
    assert_unchanged(RemoveBroadcasts(), shared, "also read elsewhere")
    grown = """(float[N,1,1] q, float[N,K] like) => (float[] y) <int64[1] one = {1}> {
        n = Shape(like) s = Concat<axis=0>(n, one) b = Expand(q, s) y = Squeeze(b) }"""
    assert_unchanged(RemoveBroadcasts(), grown)
