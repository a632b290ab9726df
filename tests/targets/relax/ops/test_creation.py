"""Tensors made from sizes and positions against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from agreement import agree

from graphopt.errors import InputError
from graphopt.testing import Compiled, parse


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# ------------------------------------------------------------------------ of shapes


@pytest.mark.parametrize(
    "fill", ["float[1] {-1.5}", "int64[1] {-9223372036854775808}", "bool[1] {1}", "uint8[1] {200}"]
)
def test_constant_of_shape(fill: str) -> None:
    agree(
        f"""g (float[N,3] x) => (float[a] y)
            {{ s = Shape(x) y = ConstantOfShape<value = {fill}>(s) }}""",
        *({"x": np.zeros((n, 3), np.float32)} for n in (0, 4)),
    )


def test_constant_of_a_shape_known_at_run_time() -> None:
    text = "g (int64[2] s) => (float[a] y) { y = ConstantOfShape(s) }"
    agree(text, {"s": ints(2, 3)}, {"s": ints(0, 5)})
    with pytest.raises(InputError, match="ConstantOfShape 'y': not a shape"):
        Compiled(parse(text))({"s": ints(2, -1)})


def test_what_only_its_size_is_read_of_still_finds_that_size() -> None:
    text = """g (int64[2] s, int64[2] t) => (float[a,2] y, int64[b] n)
        <int64[1] two = {2}> {
            zeros = ConstantOfShape(s) rows = Shape<end=1>(zeros) shape = Concat<axis=0>(rows, two)
            y = ConstantOfShape(shape)
            others = ConstantOfShape(t) n = Shape(others)
        }"""
    agree(text, {"s": ints(3, 4), "t": ints(5, 6)}, {"s": ints(0, 1), "t": ints(1, 0)})
    with pytest.raises(InputError, match="ConstantOfShape 'zeros': not a shape"):
        Compiled(parse(text))({"s": ints(2, -1), "t": ints(1, 1)})


@pytest.mark.parametrize("sizes", [(1 << 60, 1), (1 << 32, 1 << 32), (1 << 62, 4)])
def test_a_shape_whose_bytes_cannot_be_counted(sizes: tuple[int, int]) -> None:
    text = "g (int64[2] s) => (float[a, b] y) { y = ConstantOfShape(s) }"
    with pytest.raises(InputError, match="ConstantOfShape 'y': more elements than any memory"):
        Compiled(parse(text))({"s": ints(*sizes)})


def test_a_range_whose_bytes_cannot_be_counted() -> None:
    text = "g (int64 a, int64 n, int64 b) => (int64[c] y) { y = Range(a, n, b) }"
    with pytest.raises(InputError, match="Range 'y': more elements than any memory"):
        Compiled(parse(text))({"a": np.array(0), "n": np.array(1 << 62), "b": np.array(1)})


def test_shape_and_size() -> None:
    agree(
        """g (float[N,3,M] x) => (int64[a] s, int64[a] t, int64 n)
            { s = Shape(x) t = Shape<start=-2, end=9>(x) n = Size(x) }""",
        *({"x": np.zeros((n, 3, m), np.float32)} for n, m in [(2, 5), (0, 1)]),
    )


@pytest.mark.parametrize("attrs", ["", "<k=1>", "<k=-2, dtype=7>", "<k=9>"])
def test_eye_like(attrs: str) -> None:
    text = f"g (float[N,3] x) => (float[a] y) {{ y = EyeLike{attrs}(x) }}"
    agree(text, *({"x": np.zeros((n, 3), np.float32)} for n in (0, 2, 5)))


# -------------------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("dtype", "start", "limit", "delta"),
    [
        ("int64", 0, 5, 2),
        ("int64", 5, 0, -2),
        ("int64", 3, 3, 1),
        ("int64", 3, 0, 1),
        ("int32", -7, 8, 3),
        ("float", 0.5, 2.0, 0.25),
        ("float", 2.0, -1.0, -0.75),
        ("double", 1.0, 10.0, 3.5),
        ("double", 1.0, 1.0, 1.0),
    ],
)
def test_range(dtype: str, start: float, limit: float, delta: float) -> None:
    body = "r = Range(s, l, d) y = Neg(r)"
    numpy_dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    constants = ", ".join(
        f"{dtype} {name} = {{{value}}}" for name, value in zip("sld", (start, limit, delta))
    )
    unused = {"x": np.zeros(1, numpy_dtype)}
    agree(f"g ({dtype}[N] x) => ({dtype}[a] y) <{constants}> {{ {body} }}", unused)
    agree(
        f"g ({dtype} s, {dtype} l, {dtype} d) => ({dtype}[a] y) {{ {body} }}",
        {name: np.array(value, numpy_dtype) for name, value in zip("sld", (start, limit, delta))},
    )


def test_range_over_the_batch() -> None:
    agree(
        """g (float[N,2] x) => (int64[a] y) <int64 zero = {0}, int64 one = {1}, int64 first = {0}>
            { s = Shape(x) n = Gather(s, first) y = Range(zero, n, one) }""",
        *({"x": np.zeros((n, 2), np.float32)} for n in (0, 1, 7)),
    )


@pytest.mark.parametrize("dtype", ["int64", "float"])
def test_range_without_end(dtype: str) -> None:
    numpy_dtype = {"float": "float32"}.get(dtype, dtype)
    graph = parse(f"g ({dtype} s, {dtype} l, {dtype} d) => ({dtype}[a] y) {{ y = Range(s, l, d) }}")
    feeds = {"s": np.array(0, numpy_dtype), "l": np.array(3, numpy_dtype)}
    with pytest.raises(InputError, match="Range 'y': its step is zero"):
        Compiled(graph)({**feeds, "d": np.array(0, numpy_dtype)})


# ---------------------------------------------------------------------- triangles


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [-2, 0, 1, 2**63 - 1, -(2**40)])
def test_trilu(upper: int, k: int) -> None:
    feeds = [{"x": np.arange(1, 1 + 2 * n * 3).reshape(2, n, 3)} for n in (0, 1, 4)]
    agree(
        f"""g (int64[2,N,3] x) => (int64[a] y) <int64 k = {{{k}}}>
            {{ y = Trilu<upper={upper}>(x, k) }}""",
        *feeds,
    )
    agree(
        f"g (int64[2,N,3] x, int64 k) => (int64[a] y) {{ y = Trilu<upper={upper}>(x, k) }}",
        *({**feed, "k": np.array(k)} for feed in feeds),
    )


def test_a_diagonal_that_far_off_leaves_everything() -> None:
    """ONNX Runtime adds to the least integer and gets past the greatest."""
    text = f"g (float[N,2] x) => (float[a] y) <int64 k = {{{-(2**63)}}}> {{ y = Trilu(x, k) }}"
    x = np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(Compiled(parse(text))({"x": x})["y"], x)


def test_trilu_hides_what_is_not_a_number() -> None:
    x = np.full((2, 2), np.nan, np.float32)
    found = Compiled(parse("g (float[N,2] x) => (float[N,2] y) { y = Trilu(x) }"))({"x": x})["y"]
    assert np.isnan(found).tolist() == [[True, True], [False, True]]


# ------------------------------------------------------------------------- one-hot


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", ["int64", "int32", "float"])
def test_one_hot(axis: int, dtype: str) -> None:
    i = np.array([[0, 3, -1], [-4, 4, -5]])
    body = f"float[2] v = {{-1.5, 2.5}}> {{ y = OneHot<axis={axis}>(i, d, v) }}"
    fixed = Compiled(parse(f"g ({dtype}[N,3] i) => (float[a] y) <int64 d = {{4}}, {body}"))
    given = Compiled(parse(f"g ({dtype}[N,3] i, int64 d) => (float[a] y) <{body}"))
    for depth, rows in [(4, 2), (4, 0), (1, 2)]:
        ids = i[:rows].astype({"float": "float32"}.get(dtype, dtype))
        place = i[:rows, :, None]
        hot = (place == np.arange(depth)) | (place == np.arange(depth) - depth)
        wanted = np.moveaxis(np.where(hot, np.float32(2.5), np.float32(-1.5)), -1, axis)
        found = given({"i": ids, "d": np.array(depth)})["y"]
        np.testing.assert_array_equal(found, wanted)
        if depth == 4:
            np.testing.assert_array_equal(fixed({"i": ids})["y"], wanted)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "uint8"])
def test_an_index_far_out_of_range_is_nowhere(dtype: str) -> None:
    limits = np.iinfo(dtype)
    graph = parse(
        f"g ({dtype}[N] i) => (float[a] y) <int64 d = {{3}}, float[2] v = {{0, 1}}> "
        "{ y = OneHot(i, d, v) }"
    )
    i = np.array([limits.max, limits.min, 1], dtype)
    found = Compiled(graph)({"i": i})["y"]
    first = [0, 0, 0] if limits.min else [1, 0, 0]
    assert found.astype(int).tolist() == [[0, 0, 0], first, [0, 1, 0]]


def test_one_hot_of_a_negative_depth() -> None:
    text = "g (int64[N] i, int64 d, float[2] v) => (float[a] y) { y = OneHot(i, d, v) }"
    with pytest.raises(InputError, match="OneHot 'y': its depth is negative"):
        Compiled(parse(text))({"i": ints(0), "d": np.array(-1), "v": np.zeros(2, np.float32)})
