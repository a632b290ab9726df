"""Models in and out: what is kept, and what each damaged or hostile file prints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import EXAMPLE, shared_models
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_models import FUNCTIONS, model, run, sparse

from graphopt.errors import InvalidModelError, UnsafePathError
from graphopt.ir import onnx_io
from graphopt.ir.verifier import verify
from graphopt.testing import parse, run_onnxruntime

FOLDER = shared_models()
NAMES = sorted(p.parent.name for p in FOLDER.glob("*/model.onnx")) if FOLDER else []
X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2


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
    feeds = dict(np.load(folder / "inputs_b1.npz"))
    before, after = (outputs(f / "model.onnx", feeds) for f in (folder, tmp_path))
    assert after.keys() == before.keys()
    for output, array in before.items():
        np.testing.assert_array_equal(after[output], array)


def outputs(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ONNX Runtime answers on this CPU: on another one the last bits differ."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds)))


# ---------------------------------------------------------------- what is preserved

KEPT = {
    "an output that is an input": "g (float[N,3] x) => (float[N,3] x, float[N,3] y) { y = Neg(x) }",
    "an output that is a constant": """
        g (float[N,3] x) => (float[2] w, float[N,3] y) <float[2] w = {1, 2}> { y = Neg(x) }""",
    "an initializer listed as an input": """
        g (float[N,3] x, float[3] w) => (float[N,3] y) <float[3] w = {1,2,3}> { y = Add(x, w) }""",
    "nodes out of order": """
        g (float[N,3] x) => (float[N,3] y) { y = Neg(b) a = Abs(x) b = Exp(a) }""",
    "omitted optional inputs": """
        g (float[N,3] x) => (float[N,3] y) <float m = {1}> { y = Clip(x, _, m) }""",
    "omitted optional outputs": """
        g (float[N,3] x) => (float[A,B,C] h) <
            int64[1] zero = {0}, float[1,3,3] w = {1,2,3,4,5,6,7,8,9}, float[1,3,1] r = {1,2,3}> {
            s = Unsqueeze(x, zero)
            _, h = GRU<hidden_size=1>(s, w, r)
        }""",
    "omitted trailing outputs": "g (float[N,3] x) => (float[N,3] y) { y, _ = Dropout(x) }",
    "a loop without a condition": """
        g (float[N,3] x) => (float[N,3] y) <int64 n = {3}> {
            y = Loop (n, _, x) <body = b (int64 i, bool go, float[N,3] s)
                => (bool go_out, float[N,3] s_out) { go_out = Identity(go) s_out = Add(s, x) }>
        }""",
    "a loop that carries nothing": """
        g (float[N,3] x) => (float[K,N,3] y) <int64 n = {3}> {
            y = Loop (n, _) <body = b (int64 i, bool go) => (bool go_out, float[N,3] s) {
                go_out = Identity(go) s = Neg(x) }>
        }""",
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


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT.keys())
def test_keeps(text: str) -> None:
    functions = FUNCTIONS if "local." in text else ""
    assert_round_trip(model(text, functions=functions), {"x": X})


def test_an_unwanted_result_still_counts() -> None:
    """ONNX Runtime fails on these forms; where the number of results matters they stay."""
    source = model("""
        g (float[N,3] x) => (float[N,3] y, float[1,3] z) <int64 n = {3}> {
            y, _ = Loop (n, _, x) <body = b (int64 i, bool go, float[N,3] s)
                => (bool go_out, float[N,3] t, float[N,3] u) {
                go_out = Identity(go) t = Add(s, x) u = Neg(s) }>
            z, _ = Split<axis=0, num_outputs=2>(x) }""")
    exported = onnx_io.to_proto(onnx_io.from_proto(source))
    found = run(exported, {"x": X})
    np.testing.assert_array_equal(found[0], 4 * X)
    np.testing.assert_array_equal(found[1], X[:1])


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


def test_an_older_opset_is_read_if_its_ops_have_not_changed() -> None:
    assert_round_trip(model("g (float[N,3] x) => (float[3,N] y) { y = Transpose(x) }", 5), {"x": X})


def test_strings_survive() -> None:
    source = model(
        """g (string[2] x) => (bool[2] y) {
            w = Constant <value_strings: strings = ["a", "ü"]> ()
            y = Equal(x, w) }""",
        opset=19,
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


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="is a directory"):
        onnx_io.load(tmp_path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="no such file"):
        onnx_io.load(tmp_path / "absent.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
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


@pytest.mark.parametrize("renames", [0, 1])
def test_no_model_is_left_that_reads_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """As if the process ended before, or between, the two renames over an older model."""
    text = "(float[N,2] x) => (float[N,2] y) <float[2] w = {{{0}, {0}}}> {{ y = Add(x, w) }}"
    old, new = (parse(text.format(float(k))) for k in (1, 2))
    path, replace, done = tmp_path / "m.onnx", os.replace, []
    onnx_io.save(old, path, inline_limit=0)

    def ended(source: Path, target: Path) -> None:
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(replace(source, target))

    monkeypatch.setattr(os, "replace", ended)
    with pytest.raises(KeyboardInterrupt):
        onnx_io.save(new, path, inline_limit=0)
    with pytest.raises(InvalidModelError, match="no such file"):
        onnx_io.load(path)
    monkeypatch.undo()
    onnx_io.save(new, path, inline_limit=0)
    x = np.zeros((1, 2), np.float32)
    np.testing.assert_array_equal(run_onnxruntime(onnx_io.load(path), {"x": x})["y"], x + 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
