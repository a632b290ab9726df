"""Types: the rules with symbolic sizes against ONNX Runtime, and what does not fit is an error."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import InvalidModelError, UnsupportedOpError
from graphopt.ir import dims
from graphopt.ir.content import known_ints
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.testing import graphs, parse, random_inputs, run_onnxruntime

SIZES = {"N": 3, "M": 5}


def static(dim: Any, sizes: dict[str, int]) -> Any:
    return dims.substitute(dim, sizes.get)


def assert_as_onnxruntime(graph: Graph, sizes: dict[str, int]) -> None:
    """Give the graph all its values as outputs; their types and contents must be what ORT finds."""
    values = [v for node in graph.nodes for v in node.outputs if isinstance(v.type, TensorType)]
    graph.set_outputs(values, [f"out{k}" for k in range(len(values))])
    found = run_onnxruntime(graph, random_inputs(graph, sizes))
    for value, array in zip(values, found.values()):
        assert value.producer is not None
        shape = None if value.shape is None else tuple(static(d, sizes) for d in value.shape)
        if shape is not None:
            known = [(a, b) for a, b in zip(shape, array.shape) if isinstance(a, int)]
            assert len(shape) == array.ndim and all(a == b for a, b in known), (
                f"{value.producer}: {value.type} with {sizes} is {array.shape}"
            )
        if value.content is not None:
            content = np.vectorize(lambda d: static(d, sizes), otypes=[object])(value.content)
            if known_ints(content) is not None:
                np.testing.assert_array_equal(content.astype(array.dtype), array)


@settings(max_examples=40)
@given(graph=graphs(max_steps=15), batch=st.integers(1, 4))
def test_types_and_contents_are_what_onnxruntime_computes(graph: Graph, batch: int) -> None:
    assert_as_onnxruntime(graph, {"N": batch})


HEAD = """(float[N,4] x, float[N,M,6] z, float[1,4] r, int64[N,3] ids, bool c) => (float[] y)
    <float[7,4] w, float[4] b, int64[1] v0 = {0}, int64[1] v1 = {1}, int64[1] v2 = {2},
     int64[1] m1 = {-1}, int64[2] p = {1, 2}, int64[2] n12 = {-1, 2}, int64[3] c0 = {0, 0, -1},
     int64[2] four = {2, 4}, int64[3] six = {1, 2, 3}, int64[1] big = {9223372036854775807},
     int64[1] billion = {1000000000},
     int64[6] pads = {0, 1, 0, 0, 0, 2}, int64[2] twos = {2, 2}, int64 i0 = {0}, int64 i1 = {1},
     int64 i2 = {2}, int64 i9 = {9}, int64[1] three = {3}, bool yes = {1}> """

CASES = {
    "broadcast": ("a = Add(x, r)", "f32[N, 4]"),
    "broadcast rank": ("a = Mul(b, x)", "f32[N, 4]"),
    "compare": ("a = Less(x, r)", "bool[N, 4]"),
    "where": ("a = Where(c, x, b)", "f32[N, 4]"),
    "max of three": ("a = Max(x, r, b)", "f32[N, 4]"),
    "reshape to -1": ("a = Reshape(x, n12)", "f32[2*N, 2]"),
    "reshape that copies": ("a = Reshape(z, c0)", "f32[N, M, 6]"),
    "reshape by a shape": ("s = Shape(x) a = Reshape(x, s)", "f32[N, 4]"),
    "flatten": ("a = Flatten<axis=2>(z)", "f32[M*N, 6]"),
    "flatten from the end": ("a = Flatten<axis=-2>(z)", "f32[N, 6*M]"),
    "flatten all": ("a = Flatten<axis=0>(z)", "f32[1, 6*M*N]"),
    "expand": ("a = Expand(r, four)", "f32[2, 4]"),
    "expand by a shape": ("s = Shape(x) a = Expand(r, s)", "f32[N, 4]"),
    "concat": ("a = Concat<axis=0>(x, r)", "f32[N + 1, 4]"),
    "concat from the end": ("a = Concat<axis=-1>(x, x, x)", "f32[N, 12]"),
    "slice": ("a = Slice(z, v1, v2, v2)", "f32[N, M, 1]"),
    "slice to the end": ("a = Slice(z, v0, big, v1)", "f32[N, M, 6]"),
    "slice to the end of tf2onnx": ("a = Slice(z, v0, billion, v0)", "f32[N, M, 6]"),
    "slice without axes": ("a = Slice(z, v1, v2)", "f32[max(-1*min(1, N) + min(2, N), 0), M, 6]"),
    "slice with a step": ("a = Slice(x, v0, big, v1, v2)", "f32[N, 2]"),
    "slice backwards": ("a = Slice(z, m1, low, v1, m1)", "f32[N, M, 6]"),
    "tile": ("a = Tile(x, p)", "f32[N, 8]"),
    "range": ("n = Size(x) a = Range(i0, n, i2)", "i64[2*N]"),
    "range of numbers": ("a = Range(i0, i9, i2)", "i64[5]"),
    "range backwards": ("a = Range(i9, i0, step)", "i64[9]"),
    "filled": ("s = Shape(z) a = ConstantOfShape(s)", "f32[N, M, 6]"),
    "split": ("a, d = Split<axis=2>(z, six2)", "f32[N, M, 2]"),
    "split evenly": ("a, d = Split<axis=1, num_outputs=2>(x)", "f32[N, 2]"),
    "pad": ("a = Pad(z, pads)", "f32[N, M + 1, 8]"),
    "pad some axes": ("a = Pad(x, twos, , v1)", "f32[N, 8]"),
    "gather": ("a = Gather(w, ids)", "f32[N, 3, 4]"),
    "gather a column": ("a = Gather<axis=1>(x, i1)", "f32[N]"),
    "transpose": ("a = Transpose(z)", "f32[6, M, N]"),
    "matmul": ("t = Transpose<perm=[0,2,1]>(z) a = MatMul(z, t)", "f32[N, M, M]"),
    "reduce": ("a = ReduceSum<keepdims=0>(z, v1)", "f32[N, 6]"),
    "shape": ("a = Shape<start=1>(z)", "i64[2]"),
    "squeeze": ("u = Unsqueeze(x, v1) a = Squeeze(u, v1)", "f32[N, 4]"),
    "topk": ("a, d = TopK(x, v2)", "f32[N, 2]"),
    "unique": ("u, f, a, q = Unique(z)", "i64[6*M*N]"),
    "unique along an axis": ("u, f, a, q = Unique<axis=1>(z)", "i64[M]"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_rule(case: str) -> None:
    body, wanted = CASES[case]
    weights = "int64[2] six2 = {2, 4}, int64 step = {-1}, int64[1] low = {-9223372036854775807}> "
    body = body.replace("twos, , ", 'twos, "", ')
    graph = parse(f"{HEAD.rstrip('> ')}, {weights} {{ {body} y = Identity(a) }}")
    (value,) = (v for node in graph.nodes for v in node.outputs if v.name == "a")
    assert str(value.type) == wanted
    assert_as_onnxruntime(graph, SIZES)


def test_what_lists_distinct_elements_has_one_size() -> None:
    graph = parse(f"{HEAD.rstrip('> ')}> {{ u, f, i, q = Unique<axis=0>(x) y = Gather(q, i) }}")
    (u, f, i, q) = next(iter(graph.nodes)).outputs
    (size,) = f.tensor.dims
    assert (u.tensor.dims, q.tensor.dims) == ((size, 4), (size,))
    assert str(i.type) == "i64[N]" != str(f.type)
    graph._propagate(graph.walk())
    assert f.tensor.dims == (size,), "the name of a size changed"


BRANCHES = """ {{ y = If(c) <
    then_branch = t () => (float[] p) {{ {} }},
    else_branch = e () => (float[] q) {{ {} }}
> }}"""


@pytest.mark.parametrize(
    ("then", "otherwise", "wanted"),
    [
        ("p = Relu(x)", "q = Neg(x)", r"f32\[N, 4\]"),
        ("p = Concat<axis=0>(x, r)", "q = Neg(x)", r"f32\[d\d+, 4\]"),
        ("p = Relu(x)", "q = Relu(z)", r"f32\[\*\]"),
    ],
)
def test_an_if_knows_what_its_branches_agree_on(then: str, otherwise: str, wanted: str) -> None:
    graph = parse(HEAD + BRANCHES.format(then, otherwise))
    assert re.fullmatch(wanted, str(graph.outputs[0].type))
    assert_as_onnxruntime(graph, SIZES)


def test_a_loop_stacks_what_it_collects() -> None:
    graph = parse(
        HEAD
        + """ {
        n = Shape<end=1>(x)
        trips = Squeeze(n)
        y, rows = Loop(trips, yes, b) <
            body = d (int64 i, bool go, float[4] u) => (bool go2, float[4] v, float[4] row) {
                go2 = Identity(go)
                row = Gather(x, i)
                v = Add(u, row)
            }
        >
    }"""
    )
    (loop,) = (node for node in graph.nodes if node.op == "Loop")
    assert [str(value.type) for value in loop.outputs] == ["f32[4]", "f32[N, 4]"]
    assert_as_onnxruntime(graph, SIZES)


def test_a_loop_forgets_sizes_that_its_body_changes() -> None:
    graph = parse(
        HEAD
        + """ {
        y = Loop(i2, yes, x) <
            body = d (int64 i, bool go, float[] u) => (bool go2, float[] v) {
                go2 = Identity(go)
                v = Concat<axis=0>(u, r)
            }
        >
    }"""
    )
    type_ = graph.outputs[0].tensor
    assert type_.rank == 2 and type_.dims[1] == 4 and type_.dims[0] not in (3, "N")
    assert_as_onnxruntime(graph, SIZES)


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [("", "f32[N, 5, 6]"), ("scan_output_axes = [1],", "f32[5, N, 6]")],
)
def test_a_scan_runs_along_an_axis(attributes: str, wanted: str) -> None:
    graph = parse(f"""(float[N,5,6] x, float[5,6] s) => (float[] t, float[] rows) {{
        t, rows = Scan(s, x) <
            num_scan_inputs = 1, {attributes}
            body = b (float[5,6] u, float[5,6] v) => (float[5,6] p, float[5,6] q) {{
                p = Add(u, v)
                q = Neg(p)
            }}
        >
    }}""")
    assert [str(value.type) for value in graph.outputs] == ["f32[5, 6]", wanted]
    assert_as_onnxruntime(graph, SIZES)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y = Add(x, w)", None),
        ("t = Add(b, w) y = Concat<axis=1>(t, b)", "different ranks"),
        ("y = Add(w, four_f)", "do not broadcast"),
        ("y = Add(x, ids)", "different dtypes"),
        ("y = Concat<axis=0>(x, ids)", "different dtypes"),
        ("y = Concat<axis=2>(x, x)", "out of range"),
        ("y = Reshape(w, n5)", "cannot reshape"),
        ("y = Reshape(w, five)", "cannot reshape"),
        ("y = Expand(w, three)", "do not broadcast"),
        ("y = Expand(w, n5)", r"cannot make the shape \[-1, 5\]; sizes must not be negative"),
        ("y = ConstantOfShape(n5)", "sizes must not be negative"),
        ("y = Concat<axis=0>(w, five_f)", "disagree on axis 1"),
        ("y = Slice(w, v0, v1, three)", "out of range"),
        ("y = Pad(w, v1)", "1 pads for 2 axes"),
        ("y = Split<axis=4, num_outputs=2>(w)", "out of range"),
        ("y = Gemm(w, w)", "Gemm"),
        ("y = Relu(x, x)", "Relu"),
        ("y = Relu<beta=1.0>(x)", "Relu"),
    ],
)
def test_what_does_not_fit_is_an_error(body: str, message: str | None) -> None:
    head = (
        HEAD.rstrip("> ")
        + ", float[2,2] four_f, float[1,5] five_f, int64[2] n5 = {-1, 5}, int64[1] five = {5}> "
    )
    if message is None:
        assert parse(head.replace("float[7,4] w", "float[1,4] w") + f"{{ {body} }}")
        return
    with pytest.raises(InvalidModelError, match=message):
        parse(f"{head} {{ {body} }}")


def test_an_unknown_op_is_named() -> None:
    graph = Graph("g", {"": 18})
    x = graph.add_input("x", TensorType("float32", (4,)))
    with pytest.raises(UnsupportedOpError, match="StringToHashBucketFast"):
        graph.insert("StringToHashBucketFast", [x])
    with pytest.raises(UnsupportedOpError, match="Bucketize"):
        graph.insert("Bucketize", [x], domain="com.example")


def test_a_sequence_is_no_tensor() -> None:
    with pytest.raises(InvalidModelError, match="must be a tensor"):
        parse("(float[4] x) => (float[] y) { s = SequenceConstruct(x, x) y = Add(s, x) }")


def test_unknown_ranks_stay_unknown() -> None:
    graph = parse(
        "(float[N] x, int64[R] s) => (float[] y) { r = Reshape(x, s) a = Add(r, x) y = Neg(a) }"
    )
    assert str(graph.outputs[0].type) == "f32[*]"
