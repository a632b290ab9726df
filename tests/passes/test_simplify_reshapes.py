"""Chains of reshapes become one; sizes known only at run time are not guessed."""

from __future__ import annotations

import numpy as np
import pytest

import graphopt
from graphopt.errors import InputError
from graphopt.ir.dims import Dim, Sym
from graphopt.ir.types import TensorType
from graphopt.passes._shapes import reshape_target
from graphopt.passes.simplify_reshapes import SimplifyReshapes
from graphopt.testing import assert_rewrites, assert_unchanged, parse

N, M = Sym.named("N"), Sym.named("M")


@pytest.mark.parametrize(
    ("data", "result", "target"),
    [
        ((4, 6), (24,), [24]),
        ((N, 6), (N, 2, 3), [-1, 2, 3]),
        ((N, 2, 3), (N * 2, 3), [-1, 3]),
        ((N, M), (N, M, 1), [0, 0, 1]),
        ((N, M, 4), (N, M * 4), [0, -1]),
        ((N, M, 4), (N * M, 4), [-1, 4]),
        ((N, M), (M, N), None),
        ((N, M, 4), (4, N, M), None),
        ((1,), (), []),
        ((N, 0), (0, N), None),
        ((N, 0), (N, 0, 1), [0, 0, 1]),
        ((N, 0, 5), (N, 0), [0, 0]),
        ((N, 0, 5), (N, 5, 0), None),
        ((N, 0), (0,), None),
    ],
)
def test_constant_targets(
    data: tuple[Dim, ...], result: tuple[Dim, ...], target: list[int] | None
) -> None:
    found = reshape_target(TensorType("float32", data), TensorType("float32", result))
    assert found == target


def text(shape: str, body: str, result: str = "float[] y") -> str:
    return f"""(float[{shape}] x) => ({result})
    <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[2] flat = {{-1, 8}},
     int64[3] three = {{-1, 2, 4}}, int64[3] swap = {{0, 4, 2}}, int64[2] copy = {{0, -1}},
     int64[3] tail = {{0, 0, 1}}, int64[3] middle = {{0, 1, -1}}> {{ {body} y = Sigmoid(h) }}"""


CHAINS = {
    "reshape of reshape": ("N,2,4", "a = Reshape(x, flat) h = Reshape(a, swap)", "swapped"),
    "there and back": ("N,8", "a = Reshape(x, three) h = Reshape(a, flat)", "h = Identity(x)"),
    "unsqueeze and squeeze": ("N,8", "a = Unsqueeze(x, one) h = Squeeze(a, one)", "same"),
    "squeeze without axes": ("8", "a = Unsqueeze(x, one) h = Squeeze(a)", "same"),
    "reshape to the same": ("N,8", "h = Reshape(x, flat)", "same"),
    "flatten of a matrix": ("N,8", "h = Flatten(x)", "same"),
    "two unsqueezes cancelled by one reshape": (
        "N,8",
        "a = Unsqueeze(x, zero) b = Unsqueeze(a, two) h = Reshape(b, flat)",
        "same",
    ),
}


@pytest.mark.parametrize("case", [k for k, v in CHAINS.items() if v[2] != "swapped"])
def test_chains_that_change_nothing_go(case: str) -> None:
    shape, body, _ = CHAINS[case]
    assert_rewrites(SimplifyReshapes(), text(shape, body), text(shape, "").replace("(h)", "(x)"))


@pytest.mark.parametrize(
    ("shape", "body", "after"),
    [
        ("N,2,4", "a = Flatten(x) h = Unsqueeze(a, two)", "h = Reshape(x, s)"),
        ("N,8", "h = Unsqueeze(x, two)", "h = Reshape(x, s)"),
    ],
)
def test_squeezes_become_reshapes(shape: str, body: str, after: str) -> None:
    wanted = text(shape, after).replace("<int64[1] zero", "<int64[3] s = {-1, 8, 1}, int64[1] zero")
    assert_rewrites(SimplifyReshapes(), text(shape, body), wanted)


def test_two_unknown_sizes_are_copied() -> None:
    template = "(float[N,M] x) => (float[N,M,1] y) <{}> {{ h = {} y = Relu(h) }}"
    before = template.format("int64[1] two = {2}", "Unsqueeze(x, two)")
    after = template.format("int64[3] s = {0, 0, 1}", "Reshape(x, s)")
    assert_rewrites(SimplifyReshapes(), before, after)


@pytest.mark.parametrize(
    "body",
    ["a = Unsqueeze(x, zero) y = Relu(a)", "a = Unsqueeze(x, zero) b = Relu(a) y = Neg(b)"],
)
def test_moved_unknown_sizes_are_left(body: str) -> None:
    given = f"(float[N,M] x) => (float[1,N,M] y) <int64[1] zero = {{0}}> {{ {body} }}"
    assert_unchanged(SimplifyReshapes(), given, "cannot be written with constants")


def test_an_unknown_rank_is_left() -> None:
    given = "(float[N] x, int64[R] s) => (float[] y) { a = Reshape(x, s) y = Relu(a) }"
    assert_unchanged(SimplifyReshapes(), given, "rank of the result")


def test_a_reshape_that_others_read_stays_for_them() -> None:
    before = """(float[N,2,4] x) => (float[N,8] a, float[N,8,1] y)
    <int64[2] flat = {-1, 8}, int64[1] two = {2}> {
        a = Reshape(x, flat)
        h = Unsqueeze(a, two)
        y = Relu(h)
    }"""
    after = """(float[N,2,4] x) => (float[N,8] a, float[N,8,1] y)
    <int64[2] flat = {-1, 8}, int64[3] s = {-1, 8, 1}> {
        a = Reshape(x, flat)
        h = Reshape(x, s)
        y = Relu(h)
    }"""
    assert_rewrites(SimplifyReshapes(), before, after)


@pytest.mark.parametrize(
    ("shape", "body", "after"),
    [
        ("N,8", "a = Transpose<perm=[0,1]>(x) h = Relu(a)", "h = Relu(x)"),
        ("2,8", "a = Transpose(x) b = Transpose(a) h = Relu(b)", "h = Relu(x)"),
        (
            "N,2,4",
            "a = Transpose<perm=[1,0,2]>(x) b = Transpose<perm=[0,2,1]>(a) h = Relu(b)",
            "b = Transpose<perm=[1,2,0]>(x) h = Relu(b)",
        ),
        (
            "N,1,4",
            "a = Transpose<perm=[0,2,1]>(x) h = Relu(a)",
            "a = Reshape(x, s) h = Relu(a)",
        ),
    ],
)
def test_transposes(shape: str, body: str, after: str) -> None:
    wanted = text(shape, after).replace("<int64[1] zero", "<int64[3] s = {-1, 4, 1}, int64[1] zero")
    assert_rewrites(SimplifyReshapes(), text(shape, body), wanted)


def test_a_transpose_that_moves_elements_stays() -> None:
    assert_unchanged(SimplifyReshapes(), text("N,8", "h = Transpose(x)"), "moves elements")


def test_axes_of_one_do_not_hide_a_transpose() -> None:
    before = """(float[N,3,4] x) => (float[4,N,1,3] y) <int64[1] two = {2}> {
        a = Unsqueeze(x, two)
        h = Transpose<perm=[3,0,2,1]>(a)
        y = Relu(h)
    }"""
    after = """(float[N,3,4] x) => (float[4,N,1,3] y) <int64[4] s = {4, -1, 1, 3}> {
        a = Transpose<perm=[2,0,1]>(x)
        h = Reshape(a, s)
        y = Relu(h)
    }"""
    assert_rewrites(SimplifyReshapes(), before, after)


def test_axes_of_one_that_are_dropped_do_not_move() -> None:
    """Moving them takes ONNX Runtime ten times as long."""
    given = """(float[N,3,1,4] x) => (float[N,4,3] y) <int64[3] s = {-1, 3, 4}> {
        a = Reshape(x, s)
        h = Transpose<perm=[0,2,1]>(a)
        y = Relu(h)
    }"""
    assert_unchanged(SimplifyReshapes(), given, "drops axes of size 1")


def test_axes_of_one_that_go_elsewhere_do_not_move() -> None:
    before = """(float[N,3,1,4] x) => (float[4,1,N,3] y) <int64[4] s = {-1, 1, 3, 4}> {
        a = Reshape(x, s)
        h = Transpose<perm=[3,1,0,2]>(a)
        y = Relu(h)
    }"""
    after = """(float[N,3,1,4] x) => (float[4,1,N,3] y)
    <int64[3] s = {-1, 3, 4}, int64[4] t = {4, 1, -1, 3}> {
        a = Reshape(x, s)
        b = Transpose<perm=[2,0,1]>(a)
        h = Reshape(b, t)
        y = Relu(h)
    }"""
    assert_rewrites(SimplifyReshapes(), before, after)


def test_reshapes_around_an_elementwise_op_merge() -> None:
    before = """(bool[N,M] x) => (float[N,M] y) <int64[3] s = {0, 1, -1}, int64[2] t = {0, -1}> {
        a = Reshape(x, s)
        b = Cast<to=1>(a)
        h = Reshape(b, t)
        y = Neg(h)
    }"""
    after = "(bool[N,M] x) => (float[N,M] y) { h = Cast<to=1>(x) y = Neg(h) }"
    assert_rewrites(SimplifyReshapes(), before, after)


def test_a_reshape_before_a_shared_elementwise_op_stays() -> None:
    given = """(float[N,8] x) => (float[N,2,4] b, float[N,8] y)
    <int64[3] s = {-1, 2, 4}, int64[2] t = {-1, 8}> {
        a = Reshape(x, s)
        b = Relu(a)
        h = Reshape(b, t)
        y = Neg(h)
    }"""
    assert_unchanged(SimplifyReshapes(), given, "also read elsewhere")


SQUEEZED = """(float[N,4,1] x, float[N,2] z) => (float[] y) <
    float[4,3] w, float[6,3] v, int64[2] rows = {{-1, 4}}> {{ {} }}"""


@pytest.mark.parametrize("reader", ["y = Gemm(s, w)", "t = Concat<axis=1>(s, z) y = Gemm(t, v)"])
def test_a_squeeze_that_a_reader_gives_its_rank(reader: str) -> None:
    before, after = (
        SQUEEZED.format(f"s = {how} {reader}") for how in ("Squeeze(x)", "Reshape(x, rows)")
    )
    assert_rewrites(SimplifyReshapes(), before, after, sizes={"N": 3})


@pytest.mark.parametrize("reader", ["y = Neg(s)", "y = Identity(s)", "y = MatMul(s, w)"])
def test_a_squeeze_that_may_drop_the_batch_too(reader: str) -> None:
    assert_unchanged(SimplifyReshapes(), SQUEEZED.format(f"s = Squeeze(x) {reader}"), "may be 1")


def test_a_tensor_of_no_width_is_reshaped_as_onnxruntime_takes_it() -> None:
    """It takes N for -1 in a computed shape, next to which it does not allow 0."""
    graph = parse(
        """(float[N,4] x) => (float[A,B,C] y) <int64[1] zero = {0}, int64[1] one = {1}> {
            none = Slice(x, zero, zero, one)  copy = Relu(none)
            shape = Shape(copy)  more = Concat<axis=0>(shape, one)  y = Reshape(copy, more)
        }"""
    )
    portable = graphopt.compile(graph, "onnxruntime", passes="O1", verify=False)
    assert portable.run({"x": np.ones((2, 4), np.float32)})["y"].shape == (2, 0, 1)


ASSERTED = """(float[N,M] x) => (float[] y) <int64[1] first = {{0}}, int64[1] last = {{1}},
    int64[1] zero = {{0}}, int64[1] flat = {{-1}}, int64[1] end = {{1}}> {{ {} y = Relu(s) }}"""


def test_a_size_that_a_squeeze_takes_for_granted_is_asserted_still() -> None:
    """`Reshape(x, [-1])` would give answers of N * M elements where the source is an error."""
    text = ASSERTED.format("s = Squeeze(x, last)")
    assert_rewrites(
        SimplifyReshapes(), text, ASSERTED.format("s = Reshape(x, zero)"), sizes={"M": 1}
    )
    optimized = graphopt.compile(parse(text), "onnxruntime", passes="O1", verify=False)
    assert optimized.run({"x": np.ones((3, 1), np.float32)})["y"].shape == (3,)
    with pytest.raises(InputError):
        optimized.run({"x": np.ones((3, 2), np.float32)})


def test_a_length_that_a_reshape_writes_down_is_a_constant() -> None:
    assert_rewrites(
        SimplifyReshapes(),
        """(float[L,N,4] x) => (float[A,B,C] y) <int64[1] two = {2}, int64[1] three = {3}> {
            n = Shape<start=1, end=2>(x) m = Mul(n, two) s = Concat<axis=0>(three, m, two)
            y = Reshape(x, s) }""",
        """(float[L,N,4] x) => (float[A,B,C] y) <int64[3] s = {3, -1, 2}> { y = Reshape(x, s) }""",
        sizes={"L": 3},
    )


def test_a_squeeze_that_no_constant_shape_asserts_stays() -> None:
    text = ASSERTED.format("s = Squeeze(x, first)")
    assert_unchanged(SimplifyReshapes(), text, "cannot be written")
