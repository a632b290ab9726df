"""Models in and out: what is kept, and what each damaged or hostile file prints."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from conftest import EXAMPLE, shared_models
from onnx import ModelProto, TensorProto, helper, numpy_helper

from graphopt.errors import GraphoptError, InvalidModelError, UnsafePathError, UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.ir.verifier import verify

FOLDER = shared_models()
NAMES = sorted(p.parent.name for p in FOLDER.glob("*/model.onnx")) if FOLDER else []
X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2


def model(text: str, opset: int = 18, functions: str = "") -> ModelProto:
    header = f'<ir_version: 9, opset_import: ["": {opset}, "local": 1]>\n'
    return onnx.parser.parse_model(header + text + functions)


def run(source: ModelProto, feeds: dict[str, np.ndarray], folder: Path | None = None) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    where: Any = source.SerializeToString()
    if folder is not None:
        where = str(folder / "for_onnxruntime.onnx")
        onnx.save(source, where)
    session = onnxruntime.InferenceSession(where, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def assert_round_trip(source: ModelProto, feeds: dict[str, np.ndarray]) -> ModelProto:
    graph = onnx_io.from_proto(source)
    verify(graph)
    exported = onnx_io.to_proto(graph)
    onnx.checker.check_model(exported, full_check=True)
    assert [v.name for v in exported.graph.input] == [v.name for v in graph.inputs]
    assert [v.name for v in exported.graph.output] == [v.name for v in source.graph.output]
    for before, after in zip(run(source, feeds), run(exported, feeds), strict=True):
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(after, before)
    again = onnx_io.to_proto(onnx_io.from_proto(exported))
    assert [n.op_type for n in again.graph.node] == [n.op_type for n in exported.graph.node]
    return exported


# -------------------------------------------------------------------- real models


@pytest.mark.skipif(FOLDER is None, reason="no real models (set GRAPHOPT_MODELS)")
@pytest.mark.parametrize("name", NAMES)
def test_real_model(name: str, models: Path, tmp_path: Path) -> None:
    folder = models / name
    onnx_io.save(onnx_io.load(folder / "model.onnx"), tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    expected = dict(np.load(folder / "expected_b1.npz"))
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, dict(np.load(folder / "inputs_b1.npz")))))
    assert found.keys() == expected.keys()
    for output, array in expected.items():
        np.testing.assert_array_equal(found[output], array)


# ---------------------------------------------------------------- what is preserved

KEPT = {
    "an output that is an input": "g (float[N,3] x) => (float[N,3] x, float[N,3] y) { y = Neg(x) }",
    "an output that is a constant": """
        g (float[N,3] x) => (float[2] w, float[N,3] y) <float[2] w = {1, 2}> { y = Neg(x) }""",
    "an initializer listed as an input": """
        g (float[N,3] x, float[3] w) => (float[N,3] y) <float[3] w = {1, 2, 3}> { y = Add(x, w) }""",
    "nodes out of order": """
        g (float[N,3] x) => (float[N,3] y) { y = Neg(b) a = Abs(x) b = Exp(a) }""",
    "omitted optional inputs": """
        g (float[N,3] x) => (float[N,3] y) <float m = {1}> { y = Clip(x, , m) }""",
    "omitted optional outputs": """
        g (float[N,3] x) => (float[A,B,C] h) <
            int64[1] zero = {0}, float[1,3,3] w = {1,2,3,4,5,6,7,8,9}, float[1,3,1] r = {1,2,3}> {
            s = Unsqueeze(x, zero)
            , h = GRU<hidden_size=1>(s, w, r)
        }""",
    "omitted trailing outputs": "g (float[N,3] x) => (float[N,3] y) { y, = Dropout(x) }",
    "a captured value": """
        g (float[N,3] x) => (float[N,3] y) <bool c = {1}> {
            a = Neg(x)
            y = If (c) <
                then_branch = t () => (float[N,3] r) { r = Add(a, x) },
                else_branch = e () => (float[N,3] r) { r = Sub(a, x) }>
        }""",
    "a captured constant": """
        g (float[N,3] x) => (float[N,3] y) <bool c = {0}, float[3] w = {1, 2, 3}> {
            a = Mul(x, w)
            y = If (c) <
                then_branch = t () => (float[N,3] r) { r = Add(a, w) },
                else_branch = e () => (float[N,3] r) { r = Sub(a, w) }>
        }""",
    "nested captures": """
        g (float[N,3] x) => (float[N,3] y) <bool c = {1}, bool d = {0}> {
            a = Neg(x)
            y = If (c) <
                then_branch = t () => (float[N,3] r) {
                    b = Abs(a)
                    r = If (d) <
                        then_branch = tt () => (float[N,3] s) { s = Add(a, b) },
                        else_branch = te () => (float[N,3] s) { s = Sub(x, b) }>
                },
                else_branch = e () => (float[N,3] r) { r = Identity(x) }>
        }""",
    "equal names in two branches and outside": """
        g (float[N,3] x) => (float[N,3] r) <bool c = {1}> {
            s = If (c) <
                then_branch = t () => (float[N,3] r) { u = Neg(x) r = Exp(u) },
                else_branch = e () => (float[N,3] r) { u = Abs(x) r = Sqrt(u) }>
            u = Add(s, s)
            r = Neg(u)
        }""",
    "a loop": """
        g (float[N,3] x) => (float[N,3] y, float[K,N,3] z) <int64 n = {3}, bool c = {1}> {
            y, z = Loop (n, c, x) <body = b (int64 i, bool go, float[N,3] s)
                => (bool go_out, float[N,3] s_out, float[N,3] scanned) {
                go_out = Identity(go) s_out = Add(s, x) scanned = Neg(s) }>
        }""",
    "a local function": "g (float[N,3] x) => (float[N,3] y) { a = local.f(x) y = local.f(a) }",
    "a function that calls another": """
        g (float[N,3] x) => (float[N,3] y) { a = local.twice(x) y = local.f(a) }""",
    "a function with an attribute": """
        g (float[N,3] x) => (float[N,3] y, float[N,3] z) {
            y = local.leaky <slope = 0.5> (x) z = local.leaky <slope = 0.25> (x) }""",
}
FUNCTIONS = """
<domain: "local", opset_import: ["": 18, "local": 1]> f (x) => (y) { u = Abs(x) y = Neg(u) }
<domain: "local", opset_import: ["": 18, "local": 1]> twice (x) => (y) {
    u = local.f(x) y = local.f(u) }
<domain: "local", opset_import: ["": 18, "local": 1]> leaky <slope> (x) => (y) {
    y = LeakyRelu <alpha: float = @slope> (x) }
"""


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT.keys())
def test_keeps(text: str) -> None:
    functions = FUNCTIONS if "local." in text else ""
    assert_round_trip(model(text, functions=functions), {"x": X})


def test_a_branch_may_return_what_it_captures() -> None:
    source = model("""
        g (float[N,3] x, bool c) => (float[N,3] y) {
            a = Neg(x)
            y = If (c) <then_branch = t () => (float[N,3] a) { },
                        else_branch = e () => (float[N,3] r) { r = Abs(a) }> }""")
    exported = onnx_io.to_proto(onnx_io.from_proto(source))
    onnx.checker.check_model(exported, full_check=True)
    np.testing.assert_array_equal(run(exported, {"x": X, "c": np.array(True)})[0], -X)


def test_an_inner_name_may_hide_an_outer_one() -> None:
    """ONNX forbids it, exporters do it: the inner name then means the inner value."""
    source = model("""
        g (float[N,3] x, bool c) => (float[N,3] y) {
            a = Neg(x)
            y = If (c) <then_branch = t () => (float[N,3] y) { a = Mul(x, x) y = Neg(a) },
                        else_branch = e () => (float[N,3] r) { r = Abs(a) }> }""")
    exported = onnx_io.to_proto(onnx_io.from_proto(source))
    onnx.checker.check_model(exported, full_check=True)
    np.testing.assert_array_equal(run(exported, {"x": X, "c": np.array(False)})[0], abs(X))
    np.testing.assert_array_equal(run(exported, {"x": X, "c": np.array(True)})[0], -X * X)


def test_a_body_may_return_one_value_twice() -> None:
    source = model("""
        g (float[N,3] x) => (float[N,3] y, float[K,N,3] z) <int64 n = {3}, bool c = {1}> {
            y, z = Loop (n, c, x) <body = b (int64 i, bool go, float[N,3] s)
                => (bool go, float[N,3] t, float[N,3] t) { t = Add(s, x) }>
        }""")
    exported = onnx_io.to_proto(onnx_io.from_proto(source))
    onnx.checker.check_model(exported, full_check=True)
    found = run(exported, {"x": X})
    np.testing.assert_array_equal(found[0], 4 * X)
    np.testing.assert_array_equal(found[1], np.stack([2 * X, 3 * X, 4 * X]))


@pytest.mark.parametrize("by_coordinate", [False, True])
def test_a_sparse_initializer_becomes_dense(by_coordinate: bool) -> None:
    where = np.array([[0, 1], [1, 2]]) if by_coordinate else np.array([1, 5])
    source = model("g (float[2,3] x) => (float[2,3] y) { y = Add(x, w) }")
    source.graph.sparse_initializer.append(sparse(where))
    (found,) = run(onnx_io.to_proto(onnx_io.from_proto(source)), {"x": X})
    np.testing.assert_array_equal(found, X + np.array([[0, 5, 0], [0, 0, 7]], np.float32))


def sparse(where: np.ndarray, shape: Sequence[int] = (2, 3)) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([5, 7], np.float32), "w")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(where, "w_at"), list(shape))


@pytest.mark.parametrize(
    "dtype", ["float16", "float64", "int8", "uint64", "bool", "bfloat16", "float8e4m3fn", "int4"]
)
def test_keeps_constants_of_every_dtype(dtype: str) -> None:
    code = TensorProto.DataType.Value("DOUBLE" if dtype == "float64" else dtype.upper())
    tensor = helper.make_tensor("w", code, [3], [1, 0, 1])
    source = model("g (float[2] x) => (int64[1] y) { y = Shape(w) }", opset=21)
    source.graph.initializer.append(tensor)
    exported = onnx_io.to_proto(onnx_io.from_proto(source))
    (kept,) = exported.graph.initializer
    assert kept.data_type == code
    np.testing.assert_array_equal(numpy_helper.to_array(kept), numpy_helper.to_array(tensor))


def test_strings_survive() -> None:
    source = model(
        'g (string[2] x) => (bool[2] y) { w = Constant <value_strings: strings = ["a", "ü"]> () y = Equal(x, w) }',
        19,
    )
    assert_round_trip(source, {"x": np.array(["a", "b"], object)})


def test_output_rank_is_believed_where_inference_finds_none() -> None:
    source = model("g (float[N,2,H,W] x, float w) => (float[N,3,A,B] y) { y = Conv(x, w) }")
    source.graph.input[1].type.tensor_type.ClearField("shape")
    assert onnx_io.from_proto(source).outputs[0].rank == 4


# ------------------------------------------------------------------- external data


def external(folder: Path, location: str = "w.bin", **entries: Any) -> Path:
    """A model `y = x + w`, whose w is stored at `location`."""
    source = model("g (float[N,3] x) => (float[N,3] y) { y = Add(x, w) }")
    tensor = TensorProto(name="w", dims=[2, 3], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(entry))
    source.graph.initializer.append(tensor)
    path = folder / "model.onnx"
    path.write_bytes(source.SerializeToString())
    return path


def test_external_data_is_mapped(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(b"head" + (X * 2).tobytes())
    graph = onnx_io.load(external(tmp_path, "sub/w.bin", offset=4, length=X.nbytes))
    (weight,) = graph.constants()
    base = weight.const
    while base is not None and not isinstance(base, np.memmap):
        base = base.base  # type: ignore[assignment]
    assert isinstance(base, np.memmap)
    assert weight.const is not None and not weight.const.flags.writeable
    np.testing.assert_array_equal(weight.const, X * 2)


def test_external_data_is_written_back_once(tmp_path: Path) -> None:
    table = np.arange(1 << 19, dtype=np.float32).reshape(-1, 8)
    (tmp_path / "w.bin").write_bytes(table.tobytes())
    source = model("""
        g (int64[N] i, bool c) => (float[N,8] y, float[N,8] z) {
            y = Gather(w, i)
            z = If (c) <then_branch = t () => (float[N,8] r) { r = Gather(w, i) },
                        else_branch = e () => (float[N,8] r) { r = Identity(y) }> }""")
    path = tmp_path / "model.onnx"
    tensor = TensorProto(name="w", dims=table.shape, data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    source.graph.initializer.append(tensor)
    path.write_bytes(source.SerializeToString())
    (tmp_path / "out").mkdir()
    saved = tmp_path / "out" / "model.onnx"
    onnx_io.save(onnx_io.load(path), saved)
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size < table.nbytes + 8192
    onnx.checker.check_model(str(saved))
    session = onnxruntime.InferenceSession(str(saved), providers=["CPUExecutionProvider"])
    ids = np.array([5, 65535], np.int64)
    for found in session.run(None, {"i": ids, "c": np.array(True)}):
        np.testing.assert_array_equal(found, table[ids])


def test_weights_that_nothing_reads_are_not_opened(tmp_path: Path) -> None:
    source = onnx.load(str(external(tmp_path)), load_external_data=False)
    source.graph.node[0].input[1] = "x"
    (tmp_path / "model.onnx").write_bytes(source.SerializeToString())
    assert onnx_io.load(tmp_path / "model.onnx").constants() == []


@pytest.mark.parametrize(
    "location", ["../w.bin", "/etc/hostname", "sub/../../w.bin", "", "link.bin"]
)
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(X.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(UnsafePathError, match="outside the model's folder"):
        onnx_io.load(external(folder, location))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "absent.bin"}, "is missing"),
        ({"location": "."}, "is missing"),
        ({"offset": 8}, "cut short"),
        ({"length": 8}, "needs 24 bytes but declares 8"),
        ({"length": "many"}, "malformed"),
        ({"offset": -4}, "24 bytes"),
        ({"location": "w\0.bin"}, "outside"),
    ],
)
def test_damaged_external_data(entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(X.tobytes())
    with pytest.raises(InvalidModelError, match=message):
        onnx_io.load(external(tmp_path, **entries))


# ------------------------------------------------------------------- what is refused


def plain() -> ModelProto:
    return model("g (float[N,3] x) => (float[N,3] y) <float[3] w = {1, 2, 3}> { y = Add(x, w) }")


def changed(change: Callable[[ModelProto], object]) -> Callable[[], ModelProto]:
    def build() -> ModelProto:
        source = plain()
        change(source)
        return source

    return build


def text(body: str, opset: int = 18) -> Callable[[], ModelProto]:
    return lambda: model(body, opset)


def typed(source: ModelProto, **attribute: Any) -> None:
    source.graph.node[0].attribute.append(onnx.AttributeProto(**attribute))


REFUSED: dict[str, tuple[Callable[[], ModelProto], type[GraphoptError], str]] = {
    "opset too new": (
        changed(lambda m: setattr(m.opset_import[0], "version", 99)),
        InvalidModelError,
        "newer than",
    ),
    "opset too old": (
        changed(lambda m: setattr(m.opset_import[0], "version", 6)),
        InvalidModelError,
        "older than 7",
    ),
    "no opset": (changed(lambda m: m.ClearField("opset_import")), InvalidModelError, "which opset"),
    "two opsets": (
        changed(lambda m: m.opset_import.add(domain="ai.onnx", version=17)),
        InvalidModelError,
        "two versions of domain 'ai.onnx'",
    ),
    "no graph": (changed(lambda m: m.ClearField("graph")), InvalidModelError, "no graph"),
    "unknown op": (
        text("g (float x) => (float y) { [n] y = Frobnicate(x) }"),
        UnsupportedOpError,
        r"Frobnicate \(node 'n'\): no such op in ai.onnx opset 18",
    ),
    "op of a later opset": (
        text("g (float x) => (float y) { y = Gelu(x) }"),
        UnsupportedOpError,
        "opset 18",
    ),
    "unknown domain": (
        text("g (float x) => (float y) { y = acme.Add(x) }"),
        UnsupportedOpError,
        "domain 'acme', which the model does not import",
    ),
    "unknown op of a known domain": (
        text("g (float x) => (float y) { y = local.Add(x) }"),
        UnsupportedOpError,
        "local opset 1",
    ),
    "cycle": (
        text("g (float x) => (float y) { [a] u = Add(x, y) y = Neg(u) }"),
        InvalidModelError,
        "cycle through node 'a'",
    ),
    "value computed twice": (
        text("g (float x) => (float y) { y = Neg(x) y = Abs(x) }"),
        InvalidModelError,
        "'y' is computed twice",
    ),
    "input computed": (
        text("g (float x) => (float y) { x = Neg(x) y = Abs(x) }"),
        InvalidModelError,
        "'x'",
    ),
    "initializer computed": (
        text("g (float x) => (float y) <float w = {1}> { w = Neg(x) y = Abs(w) }"),
        InvalidModelError,
        "'w' is computed twice",
    ),
    "undefined input": (
        text("g (float x) => (float y) { [n] y = Add(x, nowhere) }"),
        InvalidModelError,
        "node 'n' reads 'nowhere', which nothing computes",
    ),
    "undefined output": (
        text("g (float x) => (float y) { z = Neg(x) }"),
        InvalidModelError,
        "'y', which nothing",
    ),
    "value of a branch used outside": (
        text("""g (float x, bool c) => (float y) {
            a = If (c) <then_branch = t () => (float r) { r = Neg(x) },
                        else_branch = e () => (float r) { r = Abs(x) }>
            y = Neg(r) }"""),
        InvalidModelError,
        "'r', which nothing computes",
    ),
    "two inputs with one name": (
        changed(lambda m: m.graph.input.append(m.graph.input[0])),
        InvalidModelError,
        "two inputs",
    ),
    "two outputs with one name": (
        changed(lambda m: m.graph.output.append(m.graph.output[0])),
        InvalidModelError,
        "two outputs",
    ),
    "two initializers with one name": (
        changed(lambda m: m.graph.initializer.append(m.graph.initializer[0])),
        InvalidModelError,
        "two initializers are called 'w'",
    ),
    "input without a dtype": (
        changed(lambda m: m.graph.input[0].ClearField("type")),
        InvalidModelError,
        "input 'x' declares no dtype",
    ),
    "unknown dtype": (
        changed(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 77)),
        InvalidModelError,
        "'x' has the unknown dtype 77",
    ),
    "optional input": (
        text("g (optional(float[N]) x) => (bool y) { y = OptionalHasElement(x) }"),
        UnsupportedOpError,
        "optional are not supported",
    ),
    "wrong dtypes": (
        text(
            "g (float[2,3] x) => (float[2,2] y) <int64[3,2] w = {1,2,3,4,5,6}> { y = MatMul(x, w) }"
        ),
        InvalidModelError,
        "MatMul",
    ),
    "mixed dtypes": (
        text("g (float x, int64 i) => (float y) { y = Add(x, i) }"),
        InvalidModelError,
        "dtypes",
    ),
    "ranks that differ": (
        text(
            "g (float[2,3] x) => (float[A] y) <float[3] w = {1,2,3}> { y = Concat<axis=0>(x, w) }"
        ),
        InvalidModelError,
        "different ranks",
    ),
    "sizes that differ": (
        text("g (float[2,3] x) => (float[2,3] y) <float[4] w = {1,2,3,4}> { [n] y = Add(x, w) }"),
        InvalidModelError,
        r"Add \(node 'n'\)",
    ),
    "inner sizes that differ": (
        text("g (float[2,3] x) => (float[A,B] y) <float[2,2] w = {1,2,3,4}> { y = MatMul(x, w) }"),
        InvalidModelError,
        "MatMul",
    ),
    "axis out of range": (
        text("g (float[2,3] x) => (float[A,B] y) { y = Concat<axis=2>(x, x) }"),
        InvalidModelError,
        "axis 2 is out of range",
    ),
    "malformed permutation": (
        text("g (float[2,3] x) => (float[A,B] y) { y = Transpose<perm=[0,7]>(x) }"),
        InvalidModelError,
        "Transpose",
    ),
    "unknown attribute": (
        text("g (float[2,3] x) => (float[A,B] y) { [n] y = Relu<beta=1>(x) }"),
        InvalidModelError,
        r"Relu \(node 'n'\): it has no attribute 'beta'",
    ),
    "missing attribute": (
        text("g (float[2,3] x) => (float[A,B] y) { y = Concat(x, x) }"),
        InvalidModelError,
        "'axis' is missing",
    ),
    "attribute of the wrong kind": (
        text("g (float[2,3] x) => (float[A,B] y) { y = Concat<axis=1.5>(x, x) }"),
        InvalidModelError,
        "'axis' must be of kind INT",
    ),
    "attribute given twice": (
        text("g (float[2,3] x) => (float[A,B] y) { y = Concat<axis=0, axis=1>(x, x) }"),
        InvalidModelError,
        "'axis' is given twice",
    ),
    "attribute without a kind": (
        changed(lambda m: typed(m, name="axis", i=1)),
        InvalidModelError,
        "'axis' has no known kind",
    ),
    "attribute that is no text": (
        changed(lambda m: typed(m, name="mode", type="STRING", s=b"\xff\xfe")),
        InvalidModelError,
        "not UTF-8",
    ),
    "attribute of a function outside of any": (
        changed(lambda m: typed(m, name="axis", type="INT", ref_attr_name="a")),
        InvalidModelError,
        "outside of any",
    ),
    "attribute of an unsupported kind": (
        changed(lambda m: typed(m, name="types", type="TYPE_PROTO")),
        UnsupportedOpError,
        "TYPE_PROTO",
    ),
    "too many inputs": (
        text("g (float x) => (float y) { y = Add(x, x, x) }"),
        InvalidModelError,
        "3 inputs instead of 2",
    ),
    "missing required input": (
        text("g (float x) => (float y) { y = Add(, x) }"),
        InvalidModelError,
        "input 'A' is missing",
    ),
    "initializer too short": (
        changed(lambda m: setattr(m.graph.initializer[0], "raw_data", b"abc")),
        InvalidModelError,
        "tensor 'w' is damaged",
    ),
    "initializer of an unknown dtype": (
        changed(lambda m: setattr(m.graph.initializer[0], "data_type", 55)),
        InvalidModelError,
        "tensor 'w' is damaged",
    ),
    "initializer with a negative size": (
        changed(lambda m: m.graph.initializer[0].dims.__setitem__(0, -3)),
        InvalidModelError,
        "tensor 'w' is damaged",
    ),
    "inner initializer that hides an outer one": (
        text("""g (float x, bool c) => (float y) <float w = {1}> {
            y = If (c) <then_branch = t () => (float r) <float w = {2}> { r = Add(x, w) },
                        else_branch = e () => (float r) { r = Abs(x) }> }"""),
        InvalidModelError,
        "initializer 'w' of a subgraph hides",
    ),
    "sparse index out of range": (
        changed(lambda m: replace_weight(m, sparse(np.array([1, 6])))),
        InvalidModelError,
        "out of range",
    ),
    "sparse tensor with too few indices": (
        changed(lambda m: replace_weight(m, sparse(np.array([1])))),
        InvalidModelError,
        "one index per",
    ),
    "huge sparse tensor": (
        changed(lambda m: replace_weight(m, sparse(np.array([1, 2]), [1 << 20, 1 << 20]))),
        InvalidModelError,
        "too large",
    ),
    "a function that calls itself": (
        lambda: model(
            "g (float x) => (float y) { y = local.f(x) }",
            functions="""
            <domain: "local", opset_import: ["": 18, "local": 1]> f (x) => (y) { y = local.f(x) }""",
        ),
        GraphoptError,
        "",
    ),
    "a function of another opset": (
        lambda: model(
            "g (float x) => (float y) { y = local.f(x) }",
            functions="""
            <domain: "local", opset_import: ["": 12]> f (x) => (y) { y = Neg(x) }""",
        ),
        GraphoptError,
        "local",
    ),
    "a call with too many inputs": (
        lambda: model("g (float x) => (float y) { y = local.f(x, x) }", functions=FUNCTIONS),
        InvalidModelError,
        "",
    ),
    "branches with different numbers of outputs": (
        text("""g (float x, bool c) => (float y) {
            y = If (c) <then_branch = t () => (float r) { r = Neg(x) },
                        else_branch = e () => (float r, float s) { r = Abs(x) s = Neg(x) }> }"""),
        InvalidModelError,
        "If",
    ),
    "a loop body with too few inputs": (
        text("""g (float x) => (float y) <int64 n = {2}, bool c = {1}> {
            y = Loop (n, c, x) <body = b (int64 i, bool go) => (bool go, float r) { r = Neg(x) }> }"""),
        InvalidModelError,
        "Loop",
    ),
}


def replace_weight(source: ModelProto, tensor: onnx.SparseTensorProto) -> None:
    del source.graph.initializer[:]
    source.graph.sparse_initializer.append(tensor)


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str, tmp_path: Path) -> None:
    build, error, message = REFUSED[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(build().SerializeToString())
    with pytest.raises(error, match=message) as caught:
        onnx_io.load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="is a directory"):
        onnx_io.load(tmp_path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="no such file"):
        onnx_io.load(tmp_path / "absent.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(plain().SerializeToString())
    path.chmod(0)
    with pytest.raises(InvalidModelError, match="cannot be read"):
        onnx_io.load(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"<html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n"]
    + [np.random.default_rng(k).bytes(200) for k in range(5)]
    + [EXAMPLE.read_bytes()[:n] for n in (1, 100, 5000, -1)],
)
@pytest.mark.parametrize("name", ["model.onnx", "model.json", "model.txt"])
def test_not_a_model(content: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidModelError, match="not an ONNX model"):
        onnx_io.load(path)


def test_flipped_bytes_raise_only_our_errors(tmp_path: Path) -> None:
    """300 damaged copies of a small model: each loads, or says in one line why not."""
    original = bytearray(fuzzed().SerializeToString())
    rng = np.random.default_rng(0)
    path = tmp_path / "model.onnx"
    refused = 0
    for _ in range(300):
        damaged = bytearray(original)
        for at in rng.integers(len(damaged), size=int(rng.integers(1, 4))):
            damaged[at] = int(rng.integers(256))
        path.write_bytes(damaged)
        try:
            onnx_io.to_proto(onnx_io.load(path))
        except GraphoptError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100


def fuzzed() -> ModelProto:
    return model("""
        g (float[N,3] x, int64[N,2] ids) => (float[N,D] y) <
            float[4,3] table = {1,2,3,4,5,6,7,8,9,10,11,12}, int64[1] axis = {1},
            int64[2] shape = {0,-1}, float[9,2] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}, bool c = {1}> {
            rows = Gather<axis=0>(table, ids)
            flat = Reshape(rows, shape)
            both = Concat<axis=-1>(flat, x)
            mean = ReduceMean<keepdims=1>(both, axis)
            centred = Sub(both, mean)
            dense = Gemm<alpha=0.5, transB=0>(centred, w)
            t = Transpose<perm=[1,0]>(dense)
            back = Transpose<perm=[1,0]>(t)
            y = If (c) <then_branch = a () => (float[N,2] r) { r = Softmax<axis=1>(back) },
                        else_branch = b () => (float[N,2] r) { r = Clip(back) }>
        }""")
