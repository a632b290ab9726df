"""Reshapes, transposes, joins, parts and repetitions against ONNX Runtime."""

from __future__ import annotations

from itertools import product

import ml_dtypes
import numpy as np
import pytest
from agreement import agree

from graphopt.errors import InputError, UnsupportedOpError
from graphopt.testing import Compiled, parse, run_onnxruntime

DTYPES = ["bool", "float16", "bfloat16", "float32", "float64"] + [
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
]
SIZES = [(4, 3), (1, 3), (0, 3), (4, 0)]


def ramp(*shape: int) -> np.ndarray:
    return (np.arange(int(np.prod(shape))) - 5).astype(np.float32).reshape(shape)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# ------------------------------------------------------------------------- dtypes

EVERY_OP = """
    g (DTYPE[N,3,4] x) => (DTYPE[a] turned, DTYPE[a] sliced, DTYPE[a] joined, DTYPE[a] front,
        DTYPE[a] back, DTYPE[a] tiled, DTYPE[a] flat, DTYPE[a] wide, DTYPE[a] column)
    <int64[2] shape = {-1, 6}, int64[1] from = {-1}, int64[1] to = {-9}, int64[1] by = {-2},
     int64[1] last = {2}, int64[3] times = {2, 1, 3}, int64[2] parts = {1, 2}, int64[1] one = {1},
     int64[4] sizes = {1, 2, 3, 4}, int64 third = {-2}>
    {
        turned = Transpose<perm=[2,0,1]>(x)
        sliced = Slice(x, from, to, last, by)
        again = Identity(x)
        joined = Concat<axis=0>(x, again, x)
        front, back = Split<axis=1>(x, parts)
        tiled = Tile(x, times)
        flat = Reshape(x, shape)
        high = Unsqueeze(x, one)
        wide = Expand(high, sizes)
        column = Gather<axis=2>(x, third)
    }
"""


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_moves_alike(dtype: str) -> None:
    name = {"float32": "float", "float64": "double"}.get(dtype, dtype)
    compiled = Compiled(parse(EVERY_OP.replace("DTYPE", name)))
    plain = parse(EVERY_OP.replace("DTYPE", "int64"))
    numpy_dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    for n in (1, 3):
        x = np.arange(n * 12).reshape(n, 3, 4) % (2 if dtype == "bool" else 100)
        found = compiled({"x": x.astype(numpy_dtype)})
        for output, array in run_onnxruntime(plain, {"x": x}).items():
            assert found[output].dtype == numpy_dtype
            np.testing.assert_array_equal(found[output].astype(np.int64), array, output)


def test_nan_and_signed_zero_keep_their_bits() -> None:
    compiled = Compiled(
        parse(
            """g (float[N] x) => (float[a] y) <int64[2] s = {2, -1}>
                { t = Concat<axis=0>(x, x) u = Reshape(t, s) y = Transpose<perm=[1,0]>(u) }"""
        )
    )
    x = np.array([0x7FC12345, 0x80000000, 0xFF800000], np.uint32).view(np.float32)
    found = compiled({"x": x})["y"]
    np.testing.assert_array_equal(found.view(np.uint32), np.stack([x, x], 1).view(np.uint32))


# ------------------------------------------------------------------ the same order


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize(
    "body",
    [
        "y = Flatten(x)",
        "y = Flatten<axis=0>(x)",
        "y = Flatten<axis=-1>(x)",
        "s = Constant<value_ints=[0,0]>() y = Reshape(x, s)",
        "s = Constant<value_ints=[0,-2,1]>() u = Unsqueeze(x, s) y = Squeeze(u, s)",
        "y, mask = Dropout(x)",
        "k = Identity(x) y = Identity(k)",
    ],
)
def test_order_is_kept(body: str, shape: tuple[int, ...]) -> None:
    agree(f"g (float[N,M] x) => (float[a] y) {{ {body} }}", {"x": ramp(*shape)})


@pytest.mark.parametrize(
    ("allowzero", "shape", "wanted"),
    [
        (0, (4, 3), [2, 6]),
        (0, (4, 3), [-1, 2]),
        (0, (4, 3), [0, -1]),
        (0, (0, 3), [-1, 3]),
        (1, (0, 3), [3, 0]),
    ],
)
def test_shape_known_at_run_time(allowzero: int, shape: tuple[int, int], wanted: list[int]) -> None:
    agree(
        f"g (float[N,3] x, int64[2] s) => (float[a] y) {{ r = Reshape<allowzero={allowzero}>(x, s) "
        "y = Neg(r) }",
        {"x": ramp(*shape), "s": ints(*wanted)},
    )


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ([5, 2], "the sizes differ"),
        ([24, 1], "the sizes differ"),
        ([-1, 5], "the sizes differ"),
        ([-1, -1], "not a shape"),
        ([-3, -4], "not a shape"),
    ],
)
def test_shape_that_does_not_fit(wanted: list[int], reason: str) -> None:
    graph = parse("g (float[N,3] x, int64[2] s) => (float[a] y) { y = Reshape(x, s) }")
    with pytest.raises(InputError, match=f"Reshape 'y': .*{reason}"):
        Compiled(graph)({"x": ramp(4, 3), "s": ints(*wanted)})


def test_symbolic_shape_that_does_not_divide() -> None:
    text = "g (float[N,M] x) => (float[a] y) <int64[2] s = {-1, 5}> { y = Reshape(x, s) }"
    agree(text, {"x": ramp(2, 10)}, {"x": ramp(5, 3)})
    with pytest.raises(InputError, match="cannot reshape"):
        Compiled(parse(text))({"x": ramp(4, 3)})


def test_sizes_of_another_input() -> None:
    text = """g (float[N,4] x, float[M] z) => (float[a] y) <int64[1] rest = {-1}>
        { s = Shape(z) t = Concat<axis=0>(s, rest) y = Reshape(x, t) }"""
    agree(text, {"x": ramp(3, 4), "z": ramp(6)}, {"x": ramp(2, 4), "z": ramp(1)})
    with pytest.raises(InputError, match="the sizes differ"):
        Compiled(parse(text))({"x": ramp(3, 4), "z": ramp(5)})


def test_shape_of_unknown_length_is_refused() -> None:
    graph = parse("g (float[N,3] x, int64[K] s) => (float[a] y) { y = Reshape(x, s) }")
    with pytest.raises(UnsupportedOpError, match=r"Reshape \(node 'y'\): .* only at run time"):
        Compiled(graph)


def test_reshape_keeps_and_infers() -> None:
    text = "g (float[N,M] x) => (float[a] y) <int64[3] s = {0, 1, -1}> { y = Reshape(x, s) }"
    agree(text, *({"x": ramp(*shape)} for shape in [(4, 3), (1, 1), (4, 0)]))


def test_dropout_in_training_is_refused() -> None:
    graph = parse("g (float[N] x) => (float[N] y) <bool t = {1}> { y = Dropout(x, , t) }")
    with pytest.raises(UnsupportedOpError, match="training_mode"):
        Compiled(graph)


# -------------------------------------------------------------------- another order


@pytest.mark.parametrize("perm", ["[1,0,2]", "[2,1,0]", "[0,2,1]", "[1,2,0]"])
def test_transpose(perm: str) -> None:
    agree(
        f"g (float[N,3,M] x) => (float[a] y) {{ y = Transpose<perm={perm}>(x) }}",
        *({"x": ramp(n, 3, m)} for n, m in [(2, 5), (1, 1), (0, 2)]),
    )


def test_transpose_without_order_turns_around() -> None:
    agree("g (float[N,3,1] x) => (float[a] y) { y = Transpose(x) }", {"x": ramp(4, 3, 1)})


@pytest.mark.parametrize(
    "op", ['DepthToSpace<blocksize=2, mode="DCR">', 'DepthToSpace<blocksize=2, mode="CRD">']
)
def test_depth_to_space(op: str) -> None:
    text = f"g (float[N,8,H,W] x) => (float[a] y) {{ y = {op}(x) }}"
    agree(text, {"x": ramp(2, 8, 3, 2)}, {"x": ramp(1, 8, 1, 1)})


def test_space_to_depth() -> None:
    text = "g (float[N,3,H,4] x) => (float[a] y) { y = SpaceToDepth<blocksize=2>(x) }"
    agree(text, {"x": ramp(2, 3, 4, 4)}, {"x": ramp(1, 3, 2, 4)})


# -------------------------------------------------------------------- joins, parts


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis: int) -> None:
    agree(
        f"""g (float[N,3,M] x, float[N,3,M] z) => (float[a] y)
            {{ y = Concat<axis={axis}>(x, z, x) }}""",
        *({"x": ramp(n, 3, m), "z": -ramp(n, 3, m)} for n, m in [(2, 2), (1, 4), (0, 2), (2, 0)]),
    )


def test_concat_of_different_widths() -> None:
    agree(
        """g (float[N,3] x, float[N,K] z, float[N,0] none) => (float[a] y)
            { y = Concat<axis=1>(z, none, x, z) }""",
        *({"x": ramp(n, 3), "z": ramp(n, k), "none": ramp(n, 0)} for n, k in [(2, 1), (5, 0)]),
    )


def test_parts_of_concat_must_agree() -> None:
    text = """g (float[N,3] x, float[M] z) => (float[a] y) <int64[2] s = {-1, 5}>
        { f = Reshape(z, s) y = Concat<axis=1>(x, f) }"""
    agree(text, {"x": ramp(2, 3), "z": ramp(10)})
    with pytest.raises(InputError, match="Concat 'y': sizes d0 and N of axis 0 differ"):
        Compiled(parse(text))({"x": ramp(4, 3), "z": ramp(10)})


@pytest.mark.parametrize("n", [6, 7, 3])
def test_split_into_equal_parts(n: int) -> None:
    agree(
        """g (float[N,2] x) => (float[a] p, float[a] q, float[a] r)
            { p, q, r = Split<axis=0, num_outputs=3>(x) }""",
        {"x": ramp(n, 2)},
    )


def test_split_sizes_known_at_run_time() -> None:
    text = """g (float[N,5] x, int64[3] s) => (float[a] p, float[a] q, float[a] r)
        { p, q, r = Split<axis=-1>(x, s) }"""
    agree(text, *({"x": ramp(2, 5), "s": ints(*s)} for s in [(1, 3, 1), (0, 5, 0)]))
    for wrong in [(2, 2, 2), (6, -1, 0)]:
        with pytest.raises(InputError, match="Split 'p': its parts do not make up the axis"):
            Compiled(parse(text))({"x": ramp(2, 5), "s": ints(*wrong)})


# ------------------------------------------------------------------------- slices

LIMITS = [-(2**63), -(2**31), -4, -3, -1, 0, 1, 2, 3, 2**62]
STEPS = [1, 2, 2**63 - 1, -1, -2, -(2**63)]


def test_slice_bounds_known_at_run_time() -> None:
    text = """g (float[N,2] x, int64[1] s, int64[1] e, int64[1] a, int64[1] t) => (float[k] y)
        { y = Slice(x, s, e, a, t) }"""
    feeds = [
        {"x": ramp(n, 2), "s": ints(start), "e": ints(end), "a": ints(axis), "t": ints(step)}
        for n, start, end, axis, step in product((0, 3), LIMITS, LIMITS, (0, -1), STEPS)
    ]
    agree(text, *feeds[::7])


@pytest.mark.parametrize("start", [-5, -2, 0, 2])
@pytest.mark.parametrize("end", [-(2**63), -1, 2, 2**63 - 1])
def test_slice_of_a_symbolic_axis(start: int, end: int) -> None:
    agree(
        f"""g (float[N,4] x) => (float[a] y)
            <int64[2] s = {{{start}, 1}}, int64[2] e = {{{end}, 9}}, int64[2] t = {{2, 1}},
             int64[2] axes = {{0, 1}}> {{ y = Slice(x, s, e, axes, t) }}""",
        *({"x": ramp(n, 4)} for n in (0, 1, 3, 6)),
    )


@pytest.mark.parametrize(("start", "end"), [(-1, -(2**63)), (3, 0), (-2, -9), (-9, -9)])
def test_slice_backwards(start: int, end: int) -> None:
    agree(
        f"""g (float[N,4] x) => (float[a] y) <int64[2] s = {{{start}, {start}}},
            int64[2] e = {{{end}, {end}}}, int64[2] axes = {{1, 0}}, int64[2] t = {{-1, -2}}>
            {{ y = Slice(x, s, e, axes, t) }}""",
        *({"x": ramp(n, 4)} for n in (0, 1, 5)),
    )


def test_slice_with_a_step_of_zero() -> None:
    text = "g (float[N] x, int64[1] s, int64[1] t) => (float[a] y) { y = Slice(x, s, s, s, t) }"
    with pytest.raises(InputError, match="Slice 'y': a step is zero"):
        Compiled(parse(text))({"x": ramp(3), "s": ints(0), "t": ints(0)})


# -------------------------------------------------------------------- repetitions


@pytest.mark.parametrize("shape", [(4, 1, 1), (2, 1, 3), (3,)])
def test_expand(shape: tuple[int, ...]) -> None:
    sizes = "{" + ", ".join(map(str, shape)) + "}"
    agree(
        f"""g (float[N,3] x) => (float[a] y) <int64[{len(shape)}] s = {sizes}>
            {{ y = Expand(x, s) }}""",
        *({"x": ramp(n, 3)} for n in (0, 1, 4)),
    )


def test_expand_to_sizes_known_at_run_time() -> None:
    text = "g (float[N,1] x, int64[3] s) => (float[a] y) { y = Expand(x, s) }"
    agree(text, *({"x": ramp(n, 1), "s": ints(*s)} for n, s in [(2, (3, 1, 4)), (1, (1, 5, 0))]))
    with pytest.raises(InputError, match="do not broadcast"):
        Compiled(parse(text))({"x": ramp(3, 1), "s": ints(1, 2, 4)})
    with pytest.raises(InputError, match="not a shape"):
        Compiled(parse(text))({"x": ramp(3, 1), "s": ints(-1, 3, 4)})


def test_expand_to_the_batch_of_another_input() -> None:
    agree(
        """g (float[1,3] user, float[N,2] items) => (float[a] y) <int64[1] three = {3}>
            { s = Shape<end=1>(items) t = Concat<axis=0>(s, three) e = Expand(user, t)
              y = Concat<axis=1>(e, items) }""",
        *({"user": ramp(1, 3), "items": ramp(n, 2)} for n in (0, 1, 5)),
    )


@pytest.mark.parametrize("times", [(2, 3), (1, 1), (0, 2)])
def test_tile(times: tuple[int, int]) -> None:
    constant = f"<int64[2] t = {{{times[0]}, {times[1]}}}> "
    for given, feed in ((constant, {}), ("", {"t": ints(*times)})):
        inputs = "float[N,M] x" + (", int64[2] t" if feed else "")
        text = f"g ({inputs}) => (float[a] y) {given}{{ y = Tile(x, t) }}"
        agree(text, *({"x": ramp(*shape), **feed} for shape in SIZES))


def test_tile_by_less_than_nothing() -> None:
    text = "g (float[N] x, int64[1] t) => (float[a] y) { y = Tile(x, t) }"
    with pytest.raises(InputError, match="Tile 'y': a repeat is negative"):
        Compiled(parse(text))({"x": ramp(3), "t": ints(-1)})
