"""Attention as ONNX Runtime's optimizer writes it is read as what its CPU kernels compute."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx_models import run

from graphopt.errors import InvalidModelError, UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.testing import run_onnxruntime

HEADER = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>\n'
HEADS, WIDTH, HIDDEN, PAST = 2, 3, 6, 4
SAMPLES, LENGTH = 3, 5
INPUTS = {
    "x": "float[N,5,6]",
    "q": "float[N,7,6]",
    "codes": "uint8[N,5,6]",
    "ids": "int32[N,5]",
    "mask": "int32[N,5]",
    "each": "int32[N,5,5]",
    "lengths": "int32[N]",
    "longer": "int32[N,9]",
    "three": "int32[3]",
    "past": "float[2,N,2,4,3]",
    "pk": "float[N,2,4,3]",
    "pv": "float[N,2,4,3]",
    "bias": "float[1,2,5,5]",
    "keys": "float[N,2,5,3]",
}
RNG = np.random.default_rng(0)


def _floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


WEIGHTS = {
    "rows": np.array([[0, 4], [1, 0]], np.int64),
    "w": _floats(6, 18),
    "b": _floats(18),
    "narrow": _floats(6, 16),
    "c": _floats(16),
    "g": _floats(6),
    "e": _floats(6),
    "words": _floats(20, 6),
    "places": _floats(9, 6),
    "parts": _floats(2, 6),
    "cw": RNG.integers(-128, 128, (6, 18), np.int8),
    "cwords": RNG.integers(0, 256, (20, 6), np.uint8),
    "cplaces": RNG.integers(0, 256, (9, 6), np.uint8),
    "cparts": RNG.integers(0, 256, (2, 6), np.uint8),
    "cg": RNG.integers(0, 256, 6, np.uint8),
    "s": np.array(0.01, np.float32),
    "r": np.array(0.02, np.float32),
    "columns": np.linspace(0.001, 0.02, 18, dtype=np.float32),
    "zero": np.array(120, np.uint8),
    "none": np.array(0, np.int8),
    "nones": np.zeros(18, np.int8),
}
ATTENTION = "com.microsoft.Attention<num_heads=2"
QATTENTION = "com.microsoft.QAttention<num_heads=2"
MHA = "com.microsoft.MultiHeadAttention<num_heads=2"
RIGHT = [
    f"y = {ATTENTION}>(x, w, b)",
    f"y = {ATTENTION}>(x, w)",
    f"y = {ATTENTION}, scale=0.3>(x, w, b, mask)",
    f"y = {ATTENTION}, mask_filter_value=-5.0>(x, w, b, mask)",
    f"y = {ATTENTION}>(x, w, b, each)",
    f"y = {ATTENTION}>(x, w, b, lengths)",
    f"y = {ATTENTION}, unidirectional=1>(x, w, b)",
    f"y = {ATTENTION}, unidirectional=1>(x, w, b, mask)",
    f"y = {ATTENTION}>(x, w, b, _, _, bias)",
    f"y = {ATTENTION}, qkv_hidden_sizes=[6, 6, 4]>(x, narrow, c, mask)",
    f"y, z = {ATTENTION}>(x, w, b, longer, past)",
    f"y, z = {ATTENTION}, unidirectional=1>(x, w, b, _, past)",
    f"y = {MHA}>(q, x, x)",
    f"y = {MHA}, scale=0.3>(q, x, x, b, mask)",
    f"y = {MHA}, mask_filter_value=-5.0>(q, x, x, _, mask)",
    f"y = {MHA}>(q, x, x, b, lengths)",
    f"y = {MHA}>(q, keys, keys)",
    f"y = {MHA}, unidirectional=1>(x, x, x, b)",
    f"y = {MHA}>(x, x, x, _, _, bias)",
    f"y, z, t = {MHA}>(x, x, x, b, _, _, pk, pv)",
    f"y, z, t = {MHA}, unidirectional=1>(x, x, x, _, longer, _, pk, pv)",
    f"y = {QATTENTION}>(codes, cw, b, s, r, _, zero, none)",
    f"y = {QATTENTION}>(codes, cw, b, s, columns, mask, zero, nones)",
    f"y = {QATTENTION}, unidirectional=1>(codes, cw, b, s, r)",
    f"y, z = {QATTENTION}>(codes, cw, b, s, r, longer, zero, none, past)",
    "y, z = com.microsoft.QEmbedLayerNormalization<epsilon=0.01>(ids, mask, cwords, cplaces, "
    "cparts, cg, cg, mask, s, r, r, s, r, zero, zero, zero, zero, zero)",
    "y, z = com.microsoft.QEmbedLayerNormalization(ids, _, cwords, cplaces, _, cg, cg, _, "
    "s, r, _, s, r, zero, zero, _, zero, zero)",
    "y, z = com.microsoft.EmbedLayerNormalization<epsilon=0.01>"
    "(ids, mask, words, places, parts, g, e)",
    "y, z = com.microsoft.EmbedLayerNormalization(ids, _, words, places, _, g, e, mask)",
    "y, z, t = com.microsoft.EmbedLayerNormalization(ids, _, words, places, _, g, e, _, mask)",
    "y = SimplifiedLayerNormalization<epsilon=0.01>(x, g)",
    "y = com.microsoft.SkipSimplifiedLayerNormalization<epsilon=0.01>(x, x, g, e)",
    "y, _, _, z = com.microsoft.SkipSimplifiedLayerNormalization(x, x, g)",
    "y = com.microsoft.Trilu<upper=0>(x)",
    "y = com.microsoft.GatherND(x, rows)",
]


def model(body: str) -> onnx.ModelProto:
    read = set(re.findall(r"\w+", body.split(">(")[-1].split("(")[-1]))
    inputs = ", ".join(f"{kind} {name}" for name, kind in INPUTS.items() if name in read)
    results = [name for name in body.split(" = ")[0].split(", ") if name != "_"]
    outputs = ", ".join(f"float[A,B,C] {name}" for name in results)
    proto = onnx.parser.parse_model(f"{HEADER}g ({inputs}) => ({outputs}) {{ {body} }}")
    for output in proto.graph.output:
        if output.name == "z" and "Embed" in body:
            output.type.tensor_type.elem_type = onnx.TensorProto.INT32
        output.type.tensor_type.ClearField("shape")
    for node in proto.graph.node:
        node.input[:] = ["" if name == "_" else name for name in node.input]
        node.output[:] = ["" if name == "_" else name for name in node.output]
    for name in sorted(read & WEIGHTS.keys()):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(WEIGHTS[name], name))
    return proto


def feeds_for(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    feeds: dict[str, np.ndarray] = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or SAMPLES for d in kind.shape.dim]
        if kind.elem_type == onnx.TensorProto.FLOAT:
            feeds[value.name] = rng.normal(size=shape).astype(np.float32)
        elif kind.elem_type == onnx.TensorProto.UINT8:
            feeds[value.name] = rng.integers(0, 256, shape, np.uint8)
        elif value.name == "lengths":
            feeds[value.name] = np.array([5, 1, 3], np.int32)
        else:
            feeds[value.name] = rng.integers(0, 20 if value.name == "ids" else 2, shape, np.int32)
            if value.name != "ids":
                feeds[value.name][..., 0] = 1
    return feeds


@pytest.mark.parametrize("body", RIGHT)
def test_same_answers(body: str) -> None:
    proto = model(body)
    feeds = feeds_for(proto)
    graph = onnx_io.from_proto(proto)
    assert not any(node.domain for node in graph.nodes)
    got = run_onnxruntime(graph, feeds)
    for output, expected in zip(proto.graph.output, run(proto, feeds)):
        np.testing.assert_allclose(got[output.name], expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (f"y = {ATTENTION}, do_rotary=1>(x, w, b)", "rotates"),
        (f"y = {QATTENTION}, do_rotary=1>(codes, cw, b, s, r)", "rotates"),
        (f"y = {ATTENTION}>(x, w, b, keys)", "mask"),
        (f"y = {ATTENTION}>(x, w, b, three)", "one length for each sample"),
        (f"y = {MHA}>(x)", "packed"),
    ],
)
def test_refused(body: str, says: str) -> None:
    with pytest.raises(UnsupportedOpError, match=says):
        onnx_io.from_proto(model(body))


@pytest.mark.parametrize(
    "body",
    [
        "y = com.microsoft.Attention(x, w, b)",
        f"y = {ATTENTION}>(x)",
        f"y = {ATTENTION}, qkv_hidden_sizes=[6, 6]>(x, w, b)",
        f"y = {ATTENTION}>(x, words)",
        "y = com.microsoft.EmbedLayerNormalization(ids)",
        "y = com.microsoft.EmbedLayerNormalization(ids, mask, words, places, _, g, e)",
        "y = SimplifiedLayerNormalization(x)",
    ],
)
def test_a_call_that_does_not_fit(body: str) -> None:
    with pytest.raises(InvalidModelError):
        onnx_io.from_proto(model(body))
