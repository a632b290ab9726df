"""Lookups by columns of one matrix become one."""

from __future__ import annotations

import pytest

from graphopt.passes.fuse_lookups import FuseLookups
from graphopt.testing import assert_rewrites, assert_unchanged

PASS = FuseLookups(min_fields=3)
TABLES = "float[7,4] t, float[5,4] u"
SLICED = "i = Slice(x, c1, c2, c1) j = Slice(x, c2, c3, c1) k = Slice(x, c3, c4, c1)"
COLUMNS = "int64[1] c1 = {1}, int64[1] c2 = {2}, int64[1] c3 = {3}, int64[1] c4 = {4}"
SCALARS = "int64 c1 = {1}, int64 c2 = {2}, int64 c3 = {-2}"
NUMBERS = "int64[3] rows = {7, 5, 7}, int64[3] starts = {0, 7, 0}"
WHOLE = f"float[12,4] tu, {NUMBERS}, int64[1] c1 = {{1}}, int64[1] c4 = {{4}}"
TAKEN = "ids = Slice(x, c1, c4, c1) n = graphopt.TableRows(ids, rows, starts) y = Gather(tu, n)"
GATHERS = "a = Gather(t, i) b = Gather(u, j) c = Gather(t, k)"


def sliced(body: str, weights: str = f"{TABLES}, {COLUMNS}") -> str:
    return f"(int64[N,5] x) => (float[] y) <{weights}> {{ {SLICED} {GATHERS} {body} }}"


def test_columns_with_their_axis() -> None:
    after = f"(int64[N,5] x) => (float[] y) <{WHOLE}> {{ {TAKEN} }}"
    assert_rewrites(PASS, sliced("y = Concat<axis=1>(a, b, c)"), after)
    taken = TAKEN.replace("y = ", "f = ") + " y = Reshape(f, s)"
    after = f"(int64[N,5] x) => (float[] y) <{WHOLE}, int64[3] s = {{-1, 1, 12}}> {{ {taken} }}"
    assert_rewrites(PASS, sliced("y = Concat<axis=-1>(a, b, c)"), after)


def test_columns_without_their_axis() -> None:
    taken = "i = Gather<axis=1>(x, c1) j = Gather<axis=1>(x, c2) k = Gather<axis=-1>(x, c3)"
    body = f"{taken} {GATHERS} y = Concat<axis=1>(a, b, c)"
    before = f"(int64[N,5] x) => (float[] y) <{TABLES}, {SCALARS}> {{ {body} }}"
    taken = TAKEN.replace("y = ", "f = ") + " y = Reshape(f, s)"
    after = f"(int64[N,5] x) => (float[] y) <{WHOLE}, int64[2] s = {{-1, 12}}> {{ {taken} }}"
    assert_rewrites(PASS, before, after)


def test_what_lies_between_columns_stays() -> None:
    before = sliced("z = Gather(u, j) y = Concat<axis=1>(a, b, c, d, z)").replace(
        "int64[N,5] x)", "int64[N,5] x, float[N,1,4] d)"
    )
    taken = TAKEN.replace("y = ", "f = ") + " j = Slice(x, c2, c3, c1) z = Gather(u, j)"
    weights = f"{WHOLE}, float[5,4] u, int64[1] c2 = {{2}}, int64[1] c3 = {{3}}"
    after = f"""(int64[N,5] x, float[N,1,4] d) => (float[] y) <{weights}>
        {{ {taken} y = Concat<axis=1>(f, d, z) }}"""
    assert_rewrites(PASS, before, after)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("v = Concat<axis=1>(a, b, c) w = Concat<axis=1>(v, a) y = Neg(w)", "also read elsewhere"),
        ("y = Concat<axis=1>(a, b)", "too few to pay"),
        ("y = Concat<axis=1>(a, c, b)", "too few to pay"),
        ("y = Concat<axis=0>(a, b, c)", None),
    ],
)
def test_refusals(body: str, reason: str | None) -> None:
    text = sliced(body)
    if "a, c, b" in body:  # columns 1, 3, 2: none follows another
        assert_unchanged(PASS, text)
    else:
        assert_unchanged(PASS, text, reason)


def test_rows_of_another_width_do_not_take_part() -> None:
    text = sliced("y = Concat<axis=2>(a, b, c)").replace("float[5,4] u", "float[5,3] u")
    assert_unchanged(PASS, text)


def test_tables_that_others_read_may_not_be_copied_without_bound() -> None:
    text = sliced("z = Concat<axis=1>(a, b, c) o = ReduceSum(t) y = Add(z, o)")
    assert_unchanged(FuseLookups(3, max_growth=64), text, "would grow by 112 bytes")
    assert_unchanged(FuseLookups(3, max_bytes=64), text, "take 192 bytes")


def test_an_output_stays() -> None:
    text = sliced("y = Concat<axis=1>(a, b, c)").replace("(float[] y)", "(float[] y, float[] b)")
    assert_unchanged(PASS, text, "also read elsewhere")
