"""Ids are computed inside the kernel that looks them up."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import pytest
from agreement import agree

from graphopt.errors import IdError, UnsupportedOpError
from graphopt.testing import Compiled, parse, random_inputs, run_onnxruntime

INT64 = np.iinfo(np.int64)
# What PyTorch writes for `x // 4`, beside `x % 4`.
FLOOR = """q0 = Div(x, c) m = Mod(x, c) n = Less(x, zero) e = Equal(m, zero) o = Not(e)
    d = And(n, o) s = Sub(q0, one) q = Where(d, s, q0)"""
SPLIT = f"{FLOOR} a = Gather(t, q) b = Gather(u, m)"
PAIR = "float[6,5] t, float[4,5] u, int64 c = {4}, int64 zero = {0}, int64 one = {1}"
COLUMNS = "int64 k0 = {0}, int64 k1 = {1}, int64 k2 = {2}"
ONE_KERNEL = {
    "quotient and remainder, multiplied": f"""(int64[N] x) => (float[] y) <{PAIR}> {{
        {SPLIT} y = Mul(a, b) }}""",
    "quotient and remainder, added": f"""(int64[N,3] x) => (float[] y) <{PAIR}> {{
        {SPLIT} y = Add(a, b) }}""",
    "quotient and remainder, concatenated": f"""(int64[N] x) => (float[] y) <{PAIR}> {{
        {SPLIT} y = Concat<axis=1>(a, b) }}""",
    "quotients of floats": """(int64[N] x) => (float[] y) <float[6,5] t, float c = {4}> {
        w = Cast<to=1>(x) d = Div(w, c) f = Floor(d) i = Cast<to=7>(f) y = Gather(t, i) }""",
    "ids of 4 bytes": """(int32[N] x) => (float[] y) <float[6,5] t, int32 c = {4}> {
        m = Mod(x, c) y = Gather(t, m) }""",
    "two fields hashed together": """(int64[N,2] x) => (float[] y)
        <float[9,5] t, int64 k0 = {0}, int64 k1 = {1}, int64 p = {31}, int64 q = {9},
         int64 r = {100}> {
        a = Gather<axis=1>(x, k0) b = Gather<axis=1>(x, k1) c = Mod(a, r) d = Mul(c, p)
        e = Mod(b, r) f = Add(d, e) h = Mod(f, q) y = Gather(t, h) }""",
    "offsets of fields": """(int64[N,3] x) => (float[] y)
        <float[12,5] t, int64[3] o = {0, 5, 9}> { i = Add(x, o) y = Gather(t, i) }""",
    "offsets of columns": f"""(int64[N,3] x) => (float[] y)
        <float[12,5] t, float[12,2] u, int64[1,3] o = {{0, 5, 9}}, {COLUMNS}> {{
        i = Add(x, o) a = Gather<axis=1>(i, k2) b = Gather<axis=1>(i, k1)
        c = Gather(t, a) d = Gather(u, b) y = Concat<axis=1>(c, d) }}""",
    "an offset for each of many fields": """(int64[N,70] x) => (float[] y)
        <float[99,3] t, int64[70] o> { i = Add(x, o) y = Gather(t, i) }""",
    "columns of floats": """(float[N,5] x) => (float[] y) <float[9,5] t, float[4,5] u,
        int64[1] one = {1}, int64[1] two = {2}, int64[1] four = {4}> {
        w = Cast<to=7>(x) s = Slice(w, one, two, one) r = Slice(w, two, four, one)
        a = Gather(t, s) b = Gather(u, r) y = Concat<axis=1>(a, b) }""",
    "the only column": f"""(int64[N,1] x) => (float[] y) <{PAIR}, {COLUMNS}> {{
        i = Gather<axis=1>(x, k0) m = Mod(i, c) a = Gather(t, i) b = Gather(u, m)
        y = Concat<axis=1>(a, b) }}""",
    "a split": """(int64[N,4] x) => (float[] y) <float[9,5] t, float[4,5] u,
        int64[3] sizes = {1, 2, 1}, int64 q = {4}> {
        p, r, s = Split<axis=1>(x, sizes) m = Mod(s, q)
        a = Gather(t, p) b = Gather(u, m) c = Gather(t, r) y = Concat<axis=1>(a, b, c) }""",
    "stacked tables": """(int64[N,3] x) => (float[] y)
        <float[12,5] t, int64[3] rows = {5, 4, 3}, int64[3] starts = {0, 5, 9}> {
        n = graphopt.TableRows(x, rows, starts) y = Gather(t, n) }""",
    "stacked tables by remainder": """(int64[N,3] x) => (float[] y)
        <float[12,5] t, int64[3] rows = {5, 4, 3}, int64[3] starts = {0, 5, 9},
         int64[3] q = {5, 4, 3}> {
        m = Mod(x, q) n = graphopt.TableRows(m, rows, starts) y = Gather(t, n) }""",
    "codes": """(int64[N,3] x) => (float[] y) <int8[12,5] t, float[12] s, int64[3] o = {0, 5, 9}> {
        i = Add(x, o) y = graphopt.QuantizedLookup<bits=8>(t, s, i) }""",
    "codes, multiplied": """(int64[N] x) => (float[] y)
        <uint8[12,9] t, float[12] s, int8[5,18] u, float[5] v, int64 q = {5}> {
        m = Mod(x, q) a = graphopt.QuantizedLookup<bits=4>(t, s, x)
        b = graphopt.QuantizedLookup<bits=8>(u, v, m) y = Mul(a, b) }""",
    "a sum of many": """(int64[N,3] x) => (float[] y)
        <float[7,1] t, float[5,1] u, float[4,1] v, int64 k0 = {0}, int64 k1 = {1}, int64 k2 = {2}> {
        i = Gather<axis=1>(x, k0) j = Gather<axis=1>(x, k1) k = Gather<axis=1>(x, k2)
        a = Gather(t, i) b = Gather(u, j) c = Gather(v, k) s = Add(a, b) y = Add(c, s) }""",
    "bags of computed ids": """(int64[N,3] x) => (float[] y)
        <float[12,20] t, int64[3] o = {0, 5, 9}> {
        i = Add(x, o) y = graphopt.EmbeddingBag<mode="mean", padding_idx=5, by_id=1>(t, i) }""",
    "bags and rows side by side": """(int64[N,3] x, int64[N,2] z, float[N,2] d) => (float[] y)
        <float[9,100] t, float[4,3] u, int64 q = {4}> {
        a = graphopt.EmbeddingBag<mode="sum">(t, x)
        b = graphopt.EmbeddingBag<mode="max", padding_idx=1, empty=-1.0>(u, z)
        y = Concat<axis=1>(a, d, b) }""",
    "bags of columns": """(int64[N,5] x) => (float[] y) <float[9,4] t, int64[1] one = {1},
        int64[1] four = {4}> {
        s = Slice(x, one, four, one) y = graphopt.EmbeddingBag<mode="sum">(t, s) }""",
}


@pytest.fixture(scope="module", params=ONE_KERNEL.values(), ids=ONE_KERNEL)
def one_kernel(request: pytest.FixtureRequest) -> tuple[str, Compiled]:
    return request.param, Compiled(parse(request.param))


def test_columns_of_which_each_is_a_row() -> None:
    """Sequences joined along their last axis have a row for each of several columns of ids."""
    text = """(float[N,8] x) => (float[] y) <float[7,4] t, float[5,3] u,
        int64[1] one = {1}, int64[1] four = {4}, int64[1] seven = {7}> {
        p = Slice(x, one, four, one) q = Slice(x, four, seven, one)
        i = Cast<to=7>(p) j = Cast<to=7>(q) a = Gather(t, i) b = Gather(u, j)
        y = Concat<axis=2>(a, b) }"""
    agree(text, *(random_inputs(parse(text), {"N": batch}) for batch in (0, 1, 7)))


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_one_kernel_computes_ids_and_reads_rows(
    one_kernel: tuple[str, Compiled], batch: int
) -> None:
    text, compiled = one_kernel
    graph = parse(text)
    feeds = random_inputs(graph, {"N": batch}, seed=batch)
    wanted = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_allclose(compiled(feeds)["y"], wanted, rtol=1e-6, atol=1e-7)
    assert compiled.calls == 1


@pytest.mark.parametrize("stray", [-1, -4, -5, -24])
def test_ids_from_the_end_are_divided_as_others(stray: int) -> None:
    """In whole numbers, -1 // 4 is -1 and -1 % 4 is 3."""
    graph = parse(ONE_KERNEL["quotient and remainder, multiplied"])
    feeds = {"x": np.array([3, stray])}
    found = quotients("error")(feeds)["y"]
    np.testing.assert_array_equal(found, run_onnxruntime(graph, feeds)["y"])


@cache
def quotients(oob: Literal["error", "clamp", "zero"]) -> Compiled:
    return Compiled(parse(ONE_KERNEL["quotient and remainder, multiplied"]), oob)


@pytest.mark.parametrize("stray", [24, -25, INT64.max, INT64.min])
def test_quotients_outside(stray: int) -> None:
    graph, feeds = parse(ONE_KERNEL["quotient and remainder, multiplied"]), {"x": np.array([3, 9])}
    wanted = run_onnxruntime(graph, feeds)["y"]
    feeds["x"][1] = stray
    with pytest.raises(IdError, match="id is out of range: Gather"):
        quotients("error")(feeds)
    table, other = (
        value.const
        for value in graph.constants()
        if value.const is not None and value.const.ndim == 2
    )
    row = table[5 if stray > 0 else 0] * other[stray % 4]
    np.testing.assert_array_equal(quotients("clamp")(feeds)["y"][1], row)
    wanted[1] = 0
    np.testing.assert_array_equal(quotients("zero")(feeds)["y"], wanted)


WRAPPING = {
    "a small offset": "i = Add(x, c)",
    "an offset for each column": "i = Add(x, o)",
    "a difference": "i = Sub(x, o)",
    "from a constant": "i = Sub(c, x)",
    "a large offset": "i = Add(x, b)",
    "of the least number": "i = Sub(x, l)",
    "of two ids": "i = Add(x, x)",
    "a product": "i = Mul(x, c)",
    "on the way": "a = Mul(x, b) d = Sub(a, o) i = Mod(d, m)",
    "on the way, compared": "a = Add(x, c) n = Less(a, c) i = Where(n, x, a)",
}


@pytest.mark.parametrize("form", WRAPPING)
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_sums_wrap_around_as_those_of_onnx(dtype: str, form: str) -> None:
    """Ids at the ends of their dtype, under each policy, next to NumPy with the same sums."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    graph = parse(f"""({dtype}[N,3] x) => (float[] y) <float[12,5] t, {dtype} c = {{7}},
        {dtype} b = {{{high}}}, {dtype} l = {{{low}}}, {dtype}[3] o = {{0, 5, 9}},
        {dtype} m = {{12}}> {{ {WRAPPING[form]} y = Gather(t, i) }}""")
    ends = [*range(-14, 15), low // 2, high // 2, high // 2 + 1]
    ends += [end for k in range(14) for end in (low + k, high - k)]
    x = np.array(ends, dtype)[:, None].repeat(3, 1)
    ids = _ids(form, x, low, high)
    (table,) = (v.const for v in graph.constants() if v.const is not None and v.const.ndim == 2)
    clamped, bad = table[np.clip(ids, -12, 11)], (ids < -12) | (ids > 11)
    compiled = Compiled(graph, "clamp")
    assert compiled.calls == 1
    np.testing.assert_array_equal(compiled({"x": x})["y"], clamped)
    wanted = np.where(bad[..., None], 0, clamped)
    np.testing.assert_array_equal(Compiled(graph, "zero")({"x": x})["y"], wanted)
    compiled = Compiled(graph, "error")
    for row, stray, right in zip(x, bad.any(axis=1), clamped):
        if not stray:
            np.testing.assert_array_equal(compiled({"x": row[None]})["y"][0], right)
            continue
        with pytest.raises(IdError, match="id is out of range: Gather"):
            compiled({"x": row[None]})


def _ids(form: str, x: np.ndarray, low: int, high: int) -> np.ndarray:
    """The ids of a form of `WRAPPING`, in whole numbers of any size, and then wrapped around."""
    wide, offset, span = x.astype(object), np.array([0, 5, 9], object), 2 * (high + 1)
    wrapped = lambda value: (value - low) % span + low  # noqa: E731
    sums = {
        "a small offset": wide + 7,
        "an offset for each column": wide + offset,
        "a difference": wide - offset,
        "from a constant": 7 - wide,
        "a large offset": wide + high,
        "of the least number": wide - low,
        "of two ids": wide + wide,
        "a product": wide * 7,
        "on the way": wrapped(wrapped(wide * high) - offset) % 12,
        "on the way, compared": np.where(wrapped(wide + 7) < 7, wide, wide + 7),
    }
    return wrapped(sums[form]).astype(x.dtype)


@pytest.mark.parametrize(
    "body",
    [
        "i = Mod(x, z)",  # by what is not known
        "a = Neg(x) b = Div(a, c) i = Mod(b, m)",
    ],
)
def test_arithmetic_of_unknown_bounds_is_a_kernel_of_its_own(body: str) -> None:
    graph = parse(f"""(int64[N] x, int64[N] z) => (float[] y)
        <float[9,5] t, int64 c = {{7}}, int64 m = {{9}}> {{ {body} y = Gather(t, i) }}""")
    compiled = Compiled(graph)
    assert compiled.calls == 2
    feeds = {"x": np.array([INT64.max, INT64.min, 5]), "z": np.array([5, 3, 9])}
    found = compiled(feeds)["y"]
    np.testing.assert_array_equal(found, run_onnxruntime(graph, feeds)["y"])


def test_rows_that_are_read_elsewhere_too_are_looked_up_once() -> None:
    graph = parse("""(int64[N] x, int64[N] z) => (float[] y, float[] w) <float[9,5] t> {
        a = Gather(t, x) b = Gather(t, z) y = Mul(a, b) w = Neg(a) }""")
    feeds = random_inputs(graph, {"N": 4})
    found, wanted = Compiled(graph)(feeds), run_onnxruntime(graph, feeds)
    np.testing.assert_array_equal(found["y"], wanted["y"])
    np.testing.assert_array_equal(found["w"], wanted["w"])


def test_floats_outside_of_all_integers_are_no_ids() -> None:
    graph = parse("""(float[N,2] x) => (float[] y) <float[9,5] t, int64 k = {1}> {
        i = Cast<to=7>(x) j = Gather<axis=1>(i, k) y = Gather(t, j) }""")
    compiled = Compiled(graph)
    for stray in (1e30, -1e30, np.inf, -np.inf, np.nan):
        with pytest.raises(IdError):
            compiled({"x": np.array([[0, 3], [0, stray]], np.float32)})


def test_ids_out_of_a_sequence_are_refused_in_one_line() -> None:
    """How many parts there are is known at run time only, so the sequence cannot be resolved."""
    graph = parse(
        "(int64[N,2] x, int64 n) => (float[K,2,3] y) <float[9,3] t> {"
        " s = SplitToSequence<axis=0>(x) e = SequenceAt(s, n) y = Gather(t, e) }"
    )
    with pytest.raises(UnsupportedOpError, match="SplitToSequence"):
        Compiled(graph)
