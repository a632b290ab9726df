"""Few bits: how far answers may be apart, and what ONNX Runtime cannot do with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import graphopt
from graphopt.checking.verification import tolerances
from graphopt.errors import InvalidModelError
from graphopt.ir import onnx_io
from graphopt.targets.portable import OnnxModel
from graphopt.testing import parse, run_onnxruntime


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Neg(x)", (1e-4, 1e-5)),
        ("h = Cast<to=10>(x) y = Cast<to=1>(h)", (1e-4, 1e-5)),
        ("h = Cast<to=10>(x) g = Concat<axis=0>(h, h) y = Cast<to=1>(g)", (1e-4, 1e-5)),
        ("h = Cast<to=10>(x) n = Neg(h) y = Cast<to=1>(n)", (2**-7, 2**-7)),
        ("h = Cast<to=16>(x) n = Neg(h) y = Cast<to=1>(n)", (2**-4, 2**-4)),
        ("q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z)", (1e-4, 1e-5)),
    ],
)
def test_tolerances(body: str, expected: tuple[float, float]) -> None:
    assert tolerances(parse(f"(float[N] x) => (float[M] y) {{ {body} }}")) == expected


def test_tolerance_of_layers_in_bfloat16() -> None:
    graph = parse("(float[N] x) => (float[N] y) { y = Neg(x) }")
    assert tolerances(graph, "bf16") == (2**-4, 2**-4)


def test_a_model_in_half_precision_passes_verification() -> None:
    graph = parse(
        """(float16[N,64] x) => (float16[N,8] y)
        <float16[64,64] w, float16[64] b, float16[64,8] v> {
            h = MatMul(x, w) z = Add(h, b) a = Softmax(z) y = MatMul(a, v)
        }"""
    )
    compiled = graphopt.compile(graph, "cpu")
    assert compiled.run({"x": np.ones((3, 64), np.float16)})["y"].dtype == np.float16


def test_a_transposed_product_in_half_precision_does_not_crash_onnxruntime(tmp_path: Path) -> None:
    """With all of ONNX Runtime's rewrites this model ends the process."""
    text = """(float16[N,5,8] x) => (float16[5,N,8] y) <float16[8,8] w> {
        t = Transpose<perm=[1,0,2]>(x) y = MatMul(t, w)
    }"""
    onnx_io.save(parse(text), tmp_path / "m.onnx")
    model = OnnxModel(tmp_path / "m.onnx")
    assert model.run({"x": np.ones((2, 5, 8), np.float16)})["y"].shape == (5, 2, 8)


def test_a_quantized_model_is_compared_with_what_it_says(tmp_path: Path) -> None:
    """ONNX Runtime's optimizer rounds float weights next to rounded data; the model does not."""
    text = """(float[N,4] x) => (float[N,3] y) <float s = {0.02}, uint8 z = {128}, float[4,3] w> {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) m = Gemm(d, w)
        p = QuantizeLinear(m, s, z) y = DequantizeLinear(p, s, z)
    }"""
    graph = parse(text)
    onnx_io.save(graph, tmp_path / "m.onnx")
    model = OnnxModel(tmp_path / "m.onnx").as_written()
    feeds = {"x": np.linspace(-1, 1, 400, dtype=np.float32).reshape(100, 4)}
    assert not np.array_equal(OnnxModel(tmp_path / "m.onnx").run(feeds)["y"], model.run(feeds)["y"])
    assert np.array_equal(model.run(feeds)["y"], run_onnxruntime(graph, feeds)["y"])
    assert model.as_written() is model
    onnx_io.save(parse("(float[N] x) => (float[N] y) { y = Neg(x) }"), tmp_path / "n.onnx")
    plain = OnnxModel(tmp_path / "n.onnx")
    assert plain.as_written() is plain


def test_layers_of_four_bits_are_compared_with_what_they_say(tmp_path: Path) -> None:
    """ONNX Runtime's optimizer rounds their data, too; the model restores their weights."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
        g (float[N,32] x) => (float[N,16] y) <float[1,16] s> {
        w = DequantizeLinear<axis=0, block_size=32>(q, s) y = MatMul(x, w) }""")
    codes = rng.integers(-8, 8, (32, 16))
    array = onnx.helper.make_tensor("q", onnx.TensorProto.INT4, codes.shape, codes.reshape(-1))
    scales = rng.uniform(0.1, 1, (1, 16)).astype(np.float32)
    proto.graph.initializer.extend([array, onnx.numpy_helper.from_array(scales, "s")])
    proto.graph.ClearField("value_info")
    onnx.save(proto, tmp_path / "m.onnx")
    x = rng.normal(size=(8, 32)).astype(np.float32)
    found = OnnxModel(tmp_path / "m.onnx").as_written().run({"x": x})["y"]
    np.testing.assert_allclose(found, x @ (codes * scales), rtol=1e-4, atol=1e-4)
    graphopt.compile(tmp_path / "m.onnx", "onnxruntime", inputs={"x": x})


def test_text_passes_through_the_portable_model(tmp_path: Path) -> None:
    """As rankers have it whose features are names; only ONNX Runtime reads it."""
    label = 'LabelEncoder<keys_strings=["a","b"], values_int64s=[0,1], default_int64=2>'
    header = '<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>'
    proto = onnx.parser.parse_model(
        f"{header} g (string[N] s) => (int64[N] y) {{ y = ai.onnx.ml.{label}(s) }}"
    )
    graph = onnx_io.from_proto(proto)
    result = graphopt.compile(graph, "onnxruntime", output=tmp_path / "m.onnx")
    got = result.run({"s": np.array(["b", "x"], dtype=object)})["y"]
    assert got.tolist() == [1, 2]


@pytest.mark.parametrize("target", ["onnxruntime", "cpu"])
def test_what_onnxruntime_cannot_run_is_said_of_the_source(tmp_path: Path, target: str) -> None:
    """ONNX allows these dtypes together; ONNX Runtime has no kernel for them."""
    text = """(int32[N] x) => (float[N,4] y) <int64 d = {4}, float[2] v = {0, 1}> {
        y = OneHot(x, d, v)
    }"""
    source = tmp_path / "source.onnx"
    onnx_io.save(parse(text), source)
    with pytest.raises(InvalidModelError, match=r"OneHot.*--no-verify") as caught:
        graphopt.compile(source, target, output=tmp_path / "result.onnx")
    assert str(caught.value).startswith(f"{source}: ONNX Runtime refuses it")
    assert not (tmp_path / "result.onnx").exists()
