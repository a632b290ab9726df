"""Which sizes of inputs are equal, when a model is read."""

from __future__ import annotations

import onnx
import pytest

from graphopt.ir.graph import Graph
from graphopt.ir.onnx_io import from_proto
from graphopt.testing import parse

HEADER = '<ir_version: 9, opset_import: ["": 18]>'


def read(text: str) -> Graph:
    """The graph of a model that some other program wrote."""
    return from_proto(onnx.parser.parse_model(f"{HEADER} g {text}"))


def types(text: str) -> list[str]:
    return [str(value.type) for value in read(text).inputs]


@pytest.mark.parametrize(
    ("op", "second"),
    [
        ("y = Add(a, b)", "N"),
        ("y = Where(c, a, b)", "N"),
        ("y = Concat<axis=1>(a, b)", "N"),
        ("y = MatMul(a3, b3)", "N"),
        ("p = Reshape(a, flat) q = Reshape(b, flat) y = Add(p, q)", "N"),
        ("p = Reshape(a, flat) q = Reshape(i, flat) y = Gather(p, q)", "M"),
        ("s = Relu(b) t = Neg(s) y = Mul(a, t)", "N"),
        ("u = Concat<axis=0>(a, b) y = Relu(u)", "M"),
        ("p = Relu(a) q = Relu(b) y = Gather<axis=0>(p, i)", "M"),
    ],
)
def test_ops_that_align_their_operands_say_so(op: str, second: str) -> None:
    axes = "a3 = Unsqueeze(a, two) b3 = Unsqueeze(b, one) " if "a3" in op else ""
    found = types(f"""(float[N,2] a, float[M,2] b, bool[2] c, int64[K] i) => (float[] y)
    <int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] flat = {{-1}}> {{ {axes}{op} }}""")
    assert found[:2] == ["f32[N, 2]", f"f32[{second}, 2]"]


def test_a_name_that_two_inputs_share_is_a_hint_only() -> None:
    """One exporter calls the number of ids and the number of bags alike."""
    bags = "(int64[batch] offsets, int64[batch] ids) => (int64[] y, int64[] z) "
    assert types(bags + "{ y = Neg(offsets) z = Neg(ids) }") == ["i64[batch]", "i64[batch@ids]"]
    assert types(bags + "{ y = Add(offsets, ids) z = Neg(ids) }") == ["i64[batch]", "i64[batch]"]


def test_within_one_input_a_name_is_one_size() -> None:
    assert types("(float[N,N] x) => (float[] y) { y = Relu(x) }") == ["f32[N, N]"]


def test_the_first_input_gives_its_name() -> None:
    found = types("""(float[B] a, float[s9] b, float[unk__3] c) => (float[] y) {
        t = Add(b, c)
        y = Add(t, a)
    }""")
    assert found == ["f32[B]"] * 3


def test_sizes_that_broadcast_to_one_are_left() -> None:
    assert types("(float[N,1] a, float[1,M] b) => (float[] y) { y = Add(a, b) }") == [
        "f32[N, 1]",
        "f32[1, M]",
    ]


def test_subgraphs_take_part() -> None:
    graph = read("""(float[N] a, float[M] b, bool c) => (float[] y) {
        y = If(c) <
            then_branch = t () => (float[] p) { p = Add(a, b) },
            else_branch = e () => (float[] q) { q = Relu(b) }
        >
    }""")
    assert [str(value.type) for value in graph.inputs[:2]] == ["f32[N]", "f32[N]"]
    assert str(graph.outputs[0].type) == "f32[N]"


HEADS = """(float[N,T,4] x) => (float[] y)
    <int64[3] rows = {21, -1, 4}, int64[3] back = {-1, ROWS, 4}> {
        t = Transpose<perm=[1, 0, 2]>(x)
        r = Reshape(t, rows)
        u = Transpose<perm=[1, 0, 2]>(r)
        OP
    }"""


@pytest.mark.parametrize(
    ("op", "found"),
    [
        ("y = Add(u, x)", "f32[N, 21, 4]"),  # as many samples, so 21 steps
        ("v = Transpose<perm=[0, 2, 1]>(u) y = MatMul(x, v)", "f32[N, 21, 4]"),
        ("y = Relu(u)", "f32[N, T, 4]"),  # the sequences might be cut up anew
        ("v = Reshape(u, back) y = Relu(v)", "f32[N, T, 4]"),
    ],
)
def test_a_reshape_to_one_length_gives_the_length(op: str, found: str) -> None:
    assert types(HEADS.replace("OP", op).replace("ROWS", "3")) == [found]


@pytest.mark.parametrize(
    ("op", "found"),
    [
        ("y = MatMul(x, w)", "f32[N, 4]"),
        ("t = Relu(x) y = Gemm(t, w)", "f32[N, 4]"),
        ("t = Transpose<perm=[1, 0]>(x) y = Gemm<transA=1>(t, w)", "f32[N, 4]"),
        ("v = Transpose<perm=[1, 0]>(w) y = Gemm<transB=1>(x, v)", "f32[N, 4]"),
        ("t = Concat<axis=1>(x, x) z = Concat<axis=0>(w, w) y = MatMul(t, z)", "f32[N, 4]"),
        ("t = Unsqueeze(x, zero) y, z = GRU<hidden_size=2>(t, g, r)", "f32[N, 4]"),
        ("y = MatMul(w, x)", "f32[8, M]"),
        ("y = Add(x, b)", "f32[N, M]"),  # it may be 1
        ("t = Concat<axis=1>(x, x, b2) y = MatMul(t, w)", "f32[N, M]"),  # no number does
    ],
)
def test_layers_say_how_wide_rows_are(op: str, found: str) -> None:
    weights = "float[4,8] w, float[1,6,4] g, float[1,6,2] r, float[4] b, float[N,3] b2"
    text = f"(float[N,M] x, {weights}) => (float[] y) <int64[1] zero = {{0}}> {{ {op} }}"
    assert types(text)[0] == found


def test_matrices_that_are_multiplied_share_a_size() -> None:
    assert types("(float[N,M] a, float[K,L] b) => (float[] y) { y = MatMul(a, b) }") == [
        "f32[N, M]",
        "f32[M, L]",
    ]


LOOP = """(float[N,T,2] x, float[M,2] m) => (float[N,2] y, float[N,4] z)
<int64 n = {3}, bool yes = {1}, int64[1] axis = {1}> {
    h = ReduceSum<keepdims=0>(x, axis)
    z = EQUAL
    y = Loop(n, yes, h) <body = b (int64 i, bool c, float[N,2] u) => (bool d, float[N,2] v)
        { d = Identity(c) v = Mul(u, m) }>
}"""


def test_what_a_loop_carries_keeps_its_shape_once_sizes_are_equal() -> None:
    for equal, same in (("Concat<axis=1>(m, h)", True), ("Concat<axis=1>(h, h)", False)):
        graph = parse(LOOP.replace("EQUAL", equal))
        (loop,) = (node for node in graph.walk() if node.op == "Loop")
        for value in (loop.attrs["body"].inputs[2], loop.output):
            assert (str(value.type) == "f32[N, 2]") is same
