"""ONNX Runtime's own ops are read as what it computes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx_models import run

from graphopt.api import compile, optimize
from graphopt.errors import InvalidModelError, UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.targets.cpu.legalize import legalize
from graphopt.testing import run_onnxruntime

Arrays = dict[str, np.ndarray]
HEADER = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>\n'

FLOATS = "(float[N,8] x) => (float[N,M] y)"
WEIGHTS = {
    "w": np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4),
    "v": np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8),
    "b": np.linspace(-1, 1, 4, dtype=np.float32),
    "g": np.linspace(0.5, 1.5, 8, dtype=np.float32),
    "c": np.linspace(-1, 1, 8, dtype=np.float32),
    "q": np.arange(-16, 16, dtype=np.int8).reshape(8, 4),
    "qt": np.arange(-16, 16, dtype=np.int8).reshape(4, 8),
    "s": np.float32(0.05),
    "r": np.float32(0.07),
    "z": np.uint8(128),
    "zero": np.int8(0),
    "each": np.linspace(0.02, 0.05, 4, dtype=np.float32),
    "zeros": np.zeros(4, np.int8),
    "one": np.array([1], np.int64),
    "qb": np.array([-100, 50, 3, 0], np.int32),
}

FLOAT_OPS = [
    'y = com.microsoft.FusedGemm<activation="Relu">(x, w, b)',
    'y = com.microsoft.FusedGemm<activation="LeakyRelu", activation_alpha=0.1>(x, w, b)',
    'y = com.microsoft.FusedGemm<activation="Sigmoid", transB=1, alpha=0.5, beta=2.0>(x, v, b)',
    "y = com.microsoft.FusedMatMul<alpha=0.125, transB=1>(x, v)",
    "t = Transpose(x) y = com.microsoft.FusedMatMul<transA=1>(t, w)",
    "y = com.microsoft.BiasGelu(x, c)",
    "y = com.microsoft.Gelu(x)",
    "y = com.microsoft.FastGelu(x, c)",
    "y = com.microsoft.FastGelu(x)",
    "y = com.microsoft.QuickGelu<alpha=1.5>(x)",
    "k = Neg(x) h = Exp(k) y = com.microsoft.SkipLayerNormalization<epsilon=0.001>(x, h, g, c, c)",
    "h = Exp(x) y = com.microsoft.SkipLayerNormalization(x, h, g)",
    """h = Exp(x) n, _, _, a = com.microsoft.SkipLayerNormalization(x, h, g, c)
       y = Add(n, a)""",
    "y = com.microsoft.DynamicQuantizeMatMul(x, q, s, zero, b)",
    "y = com.microsoft.DynamicQuantizeMatMul(x, q, each)",
    "d, e, f = DynamicQuantizeLinear(x) y = com.microsoft.MatMulIntegerToFloat(d, q, e, s, f)",
]
CODES = "a = QuantizeLinear(x, s, z) k = Neg(x) h = QuantizeLinear(k, r, z) "
CODE_OPS = [
    "p = com.microsoft.QLinearAdd(a, s, z, h, r, z, r, z)",
    "p = com.microsoft.QLinearMul(a, s, z, h, r, z, s, z)",
    "p = com.microsoft.QLinearSigmoid(a, s, z, r, z)",
    "p = com.microsoft.QLinearLeakyRelu<alpha=0.1>(a, s, z, r, z)",
    "p = com.microsoft.QLinearConcat<axis=1>(r, z, a, s, z, h, r, z)",
    "p = com.microsoft.QLinearSoftmax<axis=1, opset=17>(a, s, z, r, z)",
    "m = Greater(x, k) p = com.microsoft.QLinearWhere(m, a, s, z, h, r, z, r, z)",
    "p = com.microsoft.QGemm(a, s, z, q, r, zero, qb, r, z)",
    "p = com.microsoft.QGemm<transB=1>(a, s, z, qt, each, zeros, qb, r, z)",
    "p = com.microsoft.QuantizeLinear(x, r, z)",
    """d = Unsqueeze(a, one) e = com.microsoft.QLinearAveragePool<kernel_shape=[3], pads=[1, 1]>(
        d, s, z, r, z) p = Squeeze(e, one)""",
    """d = Unsqueeze(a, one) e = com.microsoft.QLinearGlobalAveragePool(d, s, z, r, z)
        p = Squeeze(e, one)""",
]


def model(body: str, signature: str = FLOATS) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f"{HEADER}g {signature} {{ {body} }}")
    for node in proto.graph.node:
        node.output[:] = ["" if name == "_" else name for name in node.output]
    read = {name for node in proto.graph.node for name in node.input}
    for name in sorted(read & WEIGHTS.keys()):
        array = np.asarray(WEIGHTS[name])
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def both(body: str) -> tuple[np.ndarray, np.ndarray]:
    proto = model(body)
    feeds = {"x": np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)}
    graph = onnx_io.from_proto(proto)
    assert not any(node.domain for node in graph.nodes)
    return run_onnxruntime(graph, feeds)["y"], run(proto, feeds)[0]


@pytest.mark.parametrize("body", FLOAT_OPS)
def test_floats(body: str) -> None:
    got, expected = both(body)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("body", CODE_OPS)
def test_codes(body: str) -> None:
    """A number in the middle of two codes may become either: ONNX Runtime multiplies otherwise.

    And exponentials of its softmax are read off a table of integers.
    """
    got, expected = both(f"{CODES}{body} y = com.microsoft.DequantizeLinear(p, r, z)")
    step = float(WEIGHTS["r"])
    assert np.abs(got - expected).max() <= 1.001 * step
    allowed = 0.06 if "Softmax" in body else 0.02  # one number of 50
    assert np.mean(got != expected) <= allowed


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("y = com.microsoft.Inverse(x)", "Inverse.*before ONNX Runtime's optimizations"),
        ('y = com.microsoft.FusedGemm<activation="Swish">(x, w, b)', "FusedGemm.*'Swish'"),
        ("y = com.microsoft.FusedMatMul<transBatchA=1>(x, w)", "transposes batches"),
    ],
)
def test_refused(body: str, says: str) -> None:
    with pytest.raises(UnsupportedOpError, match=says):
        onnx_io.from_proto(model(body))


def test_a_call_that_does_not_fit() -> None:
    for body in (
        "y = com.microsoft.QuickGelu()",
        "y, z = com.microsoft.Gelu(x)",
        "y = com.microsoft.FusedMatMul<transB=1>(x)",
        "y = com.microsoft.MatMulIntegerToFloat(x, w)",
        "y = com.microsoft.QGemm(x, w)",
    ):
        with pytest.raises(InvalidModelError):
            onnx_io.from_proto(model(body))


FOREIGN = """ir_version: 8, opset_import: ["": 17]>
    g (float[N,8] x) => (float[N,8] y) {{ {} }}"""


def read(body: str) -> onnx.ModelProto:
    return onnx.parser.parse_model("<" + FOREIGN.format(body))


@pytest.mark.parametrize(
    "body",
    [
        "y = Erfc(x)",
        "n = Neg(x) s = Mul(n, x) y = Erfc(s)",
        "n = Neg(x) s = Mul(x, n) y = Erfc(s)",
        "n = Neg(x) s = Mul(n, n) y = Erfc(s)",
    ],
)
def test_erfc_as_tf2onnx_writes_it(body: str) -> None:
    x = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    given = {"y = Erfc(x)": x, "n = Neg(x) s = Mul(n, n) y = Erfc(s)": x * x}.get(body, -x * x)
    got = run_onnxruntime(onnx_io.from_proto(read(body)), {"x": x})["y"]
    expected = np.vectorize(math.erfc)(given.astype(np.float64))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_gelu_by_erfc_is_the_activation_of_a_layer() -> None:
    body = """z = MatMul(x, w) h = Mul(half, z) n = Neg(z) s = Mul(n, root) e = Erfc(s)
        y = Mul(h, e)"""
    proto = read(body)
    for name, array in {
        "w": np.eye(8, dtype=np.float32),
        "half": np.float32(0.5),
        "root": np.float32(0.5**0.5),
    }.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    graph = optimize(onnx_io.from_proto(proto))
    legalize(graph, lanes=8)
    assert [node.op_type for node in graph.nodes] == ["Dense"]


def test_a_source_that_no_engine_runs_is_verified_as_it_was_read(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(read("y = Erfc(x)"), file)
    result = compile(file, "onnxruntime", output=tmp_path / "out.onnx")
    x = np.zeros((2, 8), np.float32)
    np.testing.assert_allclose(result.run({"x": x})["y"], np.ones((2, 8)))


@pytest.mark.parametrize("dtype", ["float", "double", "int32"])
def test_bucketize_as_tf2onnx_writes_it(dtype: str) -> None:
    body = "b = Bucketize<boundaries=[-1.0, 0.0, 1.5]>(x) y = Cast<to=1>(b)"
    proto = onnx.parser.parse_model(
        ("<" + FOREIGN.format(body)).replace("float[N,8] x", f"{dtype}[N,8] x")
    )
    x = np.array([[-2, -1, -0.5, 0, 1, 1.5, 2, np.nan]])
    if dtype == "int32":
        x = np.array([[-2, -1, -1, 0, 1, 2, 3, 4]])
    x = x.astype({"float": np.float32, "double": np.float64, "int32": np.int32}[dtype])
    got = run_onnxruntime(onnx_io.from_proto(proto), {"x": x})["y"]
    expected = np.searchsorted([-1, 0, 1.5], x, side="right")
    np.testing.assert_array_equal(got, expected)


def test_another_op_that_onnx_lacks_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match=r"StringToHashBucketFast.*no such op"):
        onnx_io.from_proto(read("y = StringToHashBucketFast(x)"))
    with pytest.raises(UnsupportedOpError):
        onnx_io.from_proto(model("y = com.microsoft.Erfc(x)"))
