"""Shape arithmetic vanishes; what depends on the batch is read from the batch."""

from __future__ import annotations

import pytest

from graphopt.passes.resolve_shapes import ResolveShapes
from graphopt.testing import assert_rewrites, assert_unchanged

CONSTANTS = """<int64 i0 = {{0}}, int64 i1 = {{1}}, int64[1] v0 = {{0}}, int64[1] v1 = {{1}},
    int64[1] two = {{2}}, int64[1] eight = {{8}}, int64[1] minus = {{-1}}, int64 three = {{3}}>"""
TEXT = "(float[N,8] x, float[N,M,4] z) => (float[] y) " + CONSTANTS + " {{ {} }}"


def text(body: str) -> str:
    return TEXT.format(body)


@pytest.mark.parametrize(
    "arithmetic",
    [
        "s = Shape(x) w = Gather(s, v1) t = Concat<axis=0>(minus, w)",
        "s = Shape<start=1>(x) t = Concat<axis=0>(minus, s)",
        "s = Shape(z) d = Slice(s, two, eight) e = Mul(d, two) t = Concat<axis=0>(minus, e)",
        "s = Shape(x) n = Slice(s, v0, v1) d = Sub(n, n) e = Add(d, eight) "
        "t = Concat<axis=0>(minus, e)",
    ],
)
def test_known_elements_become_constants(arithmetic: str) -> None:
    wanted = text("y = Reshape(x, t)").replace("<", "<int64[2] t = {-1, 8}, ", 1)
    assert_rewrites(ResolveShapes(), text(f"{arithmetic} y = Reshape(x, t)"), wanted)


@pytest.mark.parametrize(
    "arithmetic",
    [
        "s = Shape(x) n = Gather(s, i0) a = Unsqueeze(n, v0) t = Concat<axis=0>(a, two)",
        "s = Shape(x) a = Slice(s, v0, v1) t = Concat<axis=0>(a, two)",
        "h = Relu(x) s = Shape(h) a = Gather(s, v0) t = Concat<axis=0>(a, two)",
        "s = Shape(x) n = Gather(s, i0) m = Mul(n, i1) a = Reshape(m, v1) "
        "t = Concat<axis=0>(a, two)",
        "s = Shape(x) d = Cast<to=6>(s) e = Cast<to=7>(d) a = Gather(e, v0) "
        "t = Concat<axis=0>(a, two)",
    ],
)
def test_the_batch_is_read_from_an_input(arithmetic: str) -> None:
    before = text(f"{arithmetic} y = ConstantOfShape(t)")
    after = text("a = Shape<start=0, end=1>(x) t = Concat<axis=0>(a, two) y = ConstantOfShape(t)")
    assert_rewrites(ResolveShapes(), before, after)


def test_runs_of_axes_are_read_at_once() -> None:
    before = text(
        "s = Shape(z) n = Gather(s, v0) m = Gather(s, v1) t = Concat<axis=0>(two, n, m, eight) "
        "y = ConstantOfShape(t)"
    )
    after = text("s = Shape<end=2>(z) t = Concat<axis=0>(two, s, eight) y = ConstantOfShape(t)")
    assert_rewrites(ResolveShapes(), before, after)


def test_a_number_for_range_is_a_number() -> None:
    before = """(float[N,8] x) => (int64[N] y) <int64 i0 = {0}, int64 one = {1}> {
        s = Shape(x)
        n = Gather(s, i0)
        y = Range(i0, n, one)
    }"""
    after = """(float[N,8] x) => (int64[N] y)
    <int64 i0 = {0}, int64 one = {1}, int64[0] none = {}> {
        s = Shape<end=1>(x)
        n = Reshape(s, none)
        y = Range(i0, n, one)
    }"""
    assert_rewrites(ResolveShapes(), before, after)


def test_int32_arithmetic_ends_in_a_cast() -> None:
    before = """(float[N,8] x) => (int32[N] y) <int64 i0 = {0}, int32 zero = {0}, int32 one = {1}> {
        s = Shape(x)
        n = Gather(s, i0)
        c = Cast<to=6>(n)
        y = Range(zero, c, one)
    }"""
    after = """(float[N,8] x) => (int32[N] y)
    <int64[0] none = {}, int32 zero = {0}, int32 one = {1}> {
        s = Shape<end=1>(x)
        n = Reshape(s, none)
        c = Cast<to=6>(n)
        y = Range(zero, c, one)
    }"""
    assert_rewrites(ResolveShapes(), before, after)


def test_an_output_is_resolved_too() -> None:
    before = """(float[N,8] x) => (int64[2] y, int64[1] z) <int64[1] v1 = {1}> {
        h = Relu(x)
        y = Shape(h)
        z = Gather(y, v1)
    }"""
    after = "(float[N,8] x) => (int64[2] y, int64[1] z) <int64[1] z = {8}> { y = Shape(x) }"
    assert_rewrites(ResolveShapes(), before, after)


def test_the_nearest_input_that_it_depends_on_is_read() -> None:
    before = """(float[N,8] x, float[N,2] z) => (float[N,3] y, float[N,10] w)
    <int64[1] three = {3}> {
        w = Concat<axis=1>(x, z)
        h = Relu(z)
        s = Shape<end=1>(h)
        t = Concat<axis=0>(s, three)
        y = ConstantOfShape(t)
    }"""
    after = """(float[N,8] x, float[N,2] z) => (float[N,3] y, float[N,10] w)
    <int64[1] three = {3}> {
        s = Shape<end=1>(z)
        t = Concat<axis=0>(s, three)
        y = ConstantOfShape(t)
        w = Concat<axis=1>(x, z)
    }"""
    assert_rewrites(ResolveShapes(), before, after)


def test_a_size_known_only_inside_is_read_there() -> None:
    text = """(bool[N] x) => (int64[1,K] i, float[K,4] y)
    <int64[1] one = {1}, int64[1] four = {4}> {
        i = NonZero(x)
        s = Shape(i)
        k = Gather(s, one)
        t = Concat<axis=0>(k, four)
        y = ConstantOfShape(t)
    }"""
    after = """(bool[N] x) => (int64[1,K] i, float[K,4] y) <int64[1] four = {4}> {
        i = NonZero(x)
        k = Shape<start=1>(i)
        t = Concat<axis=0>(k, four)
        y = ConstantOfShape(t)
    }"""
    assert_rewrites(ResolveShapes(), text, after)


def test_a_size_that_no_value_has_is_left() -> None:
    text = """(float[N,8] x) => (float[] y) <int64[1] four = {4}> {
        s = Shape<end=1>(x)
        t = Mul(s, four)
        y = ConstantOfShape(t)
    }"""
    assert_unchanged(ResolveShapes(), text, "no value has the size 4*N")


def test_values_of_run_time_are_left() -> None:
    text = (
        "(int64[2] s) => (float[] y) <int64[1] v = {1}> { d = Gather(s, v) y = ConstantOfShape(d) }"
    )
    assert_unchanged(ResolveShapes(), text)


def test_subgraphs_read_the_sizes_around_them() -> None:
    template = """(float[N,8] x, bool c) => (float[] y) <int64 i0 = {{0}}, int64[1] v0 = {{0}}> {{
        y = If(c) <
            then_branch = a () => (float[] u) {{ {} u = ConstantOfShape(t) }},
            else_branch = b () => (float[] v) {{ w = Shape<end=1>(x) v = ConstantOfShape(w) }}
        >
    }}"""
    before = template.format("h = Relu(x) s = Shape(h) n = Gather(s, i0) t = Unsqueeze(n, v0)")
    assert_rewrites(ResolveShapes(), before, template.format("t = Shape<end=1>(x)"))
