"""Parts of a concatenation come from its operands."""

from __future__ import annotations

import pytest

from graphopt.passes.bypass_concats import BypassConcats
from graphopt.testing import assert_rewrites, assert_unchanged

CONCAT = """(float[N,2] a, float[N,1] b, float[N,4] c) => (float[] y)
    <{weights}> {{ abc = Concat<axis=1>(a, b, c) {body} y = Neg(u) }}"""
PARTS = CONCAT.replace("abc = Concat<axis=1>(a, b, c) ", "")


def bounds(start: int, end: int, axis: int = 1) -> str:
    return f"int64[1] s = {{{start}}}, int64[1] e = {{{end}}}, int64[1] x = {{{axis}}}"


SLICE = "u = Slice({}, s, e, x)"


@pytest.mark.parametrize(
    ("start", "end", "after", "weights"),
    [
        (0, 2, "u = Identity(a)", ""),
        (0, 1, SLICE.format("a"), bounds(0, 1)),
        (3, 7, "u = Identity(c)", ""),
        (4, 6, SLICE.format("c"), bounds(1, 3)),
        (0, 3, "u = Concat<axis=1>(a, b)", ""),
        (2, 7, "u = Concat<axis=1>(b, c)", ""),
    ],
)
def test_slices(start: int, end: int, after: str, weights: str) -> None:
    wanted = PARTS.format(body=after, weights=weights or "int64 none = {0}")
    if "Identity" in after:
        value = after.removeprefix("u = Identity(").removesuffix(")")
        wanted = wanted.replace(after, "").replace("Neg(u)", f"Neg({value})")
    before = CONCAT.format(body=SLICE.format("abc"), weights=bounds(start, end))
    assert_rewrites(BypassConcats(), before, wanted)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (bounds(1, 3), "cuts through operands"),
        (bounds(2, 5), "cuts through operands"),
        (bounds(0, 1, axis=0), "does not slice the axis"),
    ],
)
def test_slices_through_operands_stay(weights: str, reason: str) -> None:
    text = CONCAT.format(body=SLICE.format("abc"), weights=weights)
    assert_unchanged(BypassConcats(), text, reason)


def test_nothing_after_an_operand_of_unknown_size_is_taken() -> None:
    text = """(float[2,N] a, float[2,4] b) => (float[] y)
    <int64[1] s = {{{}}}, int64[1] e = {{{}}}, int64[1] x = {{1}}> {{
        ab = Concat<axis=1>({})
        u = Slice(ab, s, e, x)
        y = Neg(u)
    }}"""
    assert_unchanged(BypassConcats(), text.format(0, 2, "a, b"), "cuts through operands")
    after = "(float[2,N] a, float[2,4] b) => (float[] y) {{ y = Neg(b) }}".format()
    assert_rewrites(BypassConcats(), text.format(0, 4, "b, a"), after)


@pytest.mark.parametrize(
    ("index", "after", "weights"),
    [
        (0, "u = Gather<axis=1>(a, i)", "int64 i = {0}"),
        (5, "u = Gather<axis=1>(c, i)", "int64 i = {2}"),
        (-1, "u = Gather<axis=1>(c, i)", "int64 i = {3}"),
        (2, "u = Reshape(b, t)", "int64[1] t = {-1}"),
    ],
)
def test_one_column(index: int, after: str, weights: str) -> None:
    before = CONCAT.format(body="u = Gather<axis=1>(abc, i)", weights=f"int64 i = {{{index}}}")
    assert_rewrites(BypassConcats(), before, PARTS.format(body=after, weights=weights))


def test_other_gathers_stay() -> None:
    rows = CONCAT.format(body="u = Gather<axis=0>(abc, i)", weights="int64 i = {0}")
    assert_unchanged(BypassConcats(), rows, "another axis")
    several = CONCAT.format(body="u = Gather<axis=1>(abc, i)", weights="int64[2] i = {0, 5}")
    assert_unchanged(BypassConcats(), several, "one position")


def test_splits() -> None:
    split = "p, q, r = Split<axis=1>(abc, s) n = Exp(q) u = Concat<axis=1>(p, n, r)"
    before = CONCAT.format(body=split, weights="int64[3] s = {2, 1, 4}")
    after = PARTS.format(body="n = Exp(b) u = Concat<axis=1>(a, n, c)", weights="int64 none = {0}")
    assert_rewrites(BypassConcats(), before, after)
    assert_unchanged(BypassConcats(), before.replace("{2, 1, 4}", "{1, 2, 4}"), "elsewhere")


def test_the_concatenation_stays_for_its_other_readers() -> None:
    text = """(float[N,2] a, float[N,3] b) => (float[] ab, float[] y)
    <int64[1] s = {2}, int64[1] e = {5}, int64[1] x = {1}> {
        ab = Concat<axis=1>(a, b)
        u = Slice(ab, s, e, x)
        y = Neg(u)
    }"""
    after = """(float[N,2] a, float[N,3] b) => (float[] ab, float[] y) {
        ab = Concat<axis=1>(a, b)
        y = Neg(b)
    }"""
    assert_rewrites(BypassConcats(), text, after)
