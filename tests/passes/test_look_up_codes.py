"""Rows of codes are restored after they are looked up, with the same bits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_models import model, run

import graphopt
from graphopt.passes.look_up_codes import LookUpCodes
from graphopt.targets.portable import OnnxModel
from graphopt.testing import assert_rewrites, assert_unchanged

TEXT = """<ir_version: 10, opset_import: ["": 21]> g (int64[N,2] i) => (float[] y)
    <{} t, float s, uint8 z, float[9] rs, uint8[9] rz, float[9,2] bs, uint8[9,2] bz,
    float[4] cs, uint8[4] cz> {{ {} }}"""
ONCE = {
    "one scale": (
        "d = DequantizeLinear(t, s, z) y = Gather(d, i)",
        "g = Gather(t, i) y = DequantizeLinear(g, s, z)",
    ),
    "no zero point": (
        "d = DequantizeLinear(t, s) y = Gather(d, i)",
        "g = Gather(t, i) y = DequantizeLinear(g, s)",
    ),
    "read twice": (
        "d = DequantizeLinear(t, s, z) a = Gather(d, i) b = Gather(d, i) y = Mul(a, b)",
        """g = Gather(t, i) a = DequantizeLinear(g, s, z) h = Gather(t, i)
        b = DequantizeLinear(h, s, z) y = Mul(a, b)""",
    ),
    "blocks": (
        "d = DequantizeLinear<axis=1, block_size=2>(t, bs, bz) y = Gather(d, i)",
        """g = Gather(t, i) p = Gather(bs, i) q = Gather(bz, i)
        y = DequantizeLinear<axis=-1, block_size=2>(g, p, q)""",
    ),
}


@pytest.mark.parametrize("form", ONCE)
def test_restored_after_lookup(form: str) -> None:
    before, after = (TEXT.format("uint8[9,4]", body) for body in ONCE[form])
    assert_rewrites(LookUpCodes(), before, after, sizes={"N": 3})


@pytest.mark.parametrize(
    ("table", "body", "reason"),
    [
        ("uint8[9,4]", "d = DequantizeLinear<axis=1>(t, cs, cz) y = Gather(d, i)", "no Dequantize"),
        ("uint8[9,4]", "d = DequantizeLinear(t, s) y = Gather<axis=1>(d, i)", "looks up columns"),
        ("int32[9,4]", "d = DequantizeLinear(t, s) y = Gather(d, i)", "8 bits or less"),
        ("uint8[9,2,2]", "d = DequantizeLinear(t, s) y = Gather(d, i)", "no constant table"),
        ("uint8[9,4]", "k = Neg(s) d = DequantizeLinear(t, k) y = Gather(d, i)", "no constant"),
    ],
)
def test_left_alone(table: str, body: str, reason: str) -> None:
    assert_unchanged(LookUpCodes(), TEXT.format(table, body), reason)


def test_blocks_before_opset_21() -> None:
    text = TEXT.format("uint8[9,4]", "d = DequantizeLinear<axis=0>(t, rs, rz) y = Gather(d, i)")
    assert_unchanged(LookUpCodes(), text.replace('"": 21', '"": 20'), "no DequantizeLinear of rows")


@pytest.mark.parametrize("dtype", [onnx.TensorProto.UINT4, onnx.TensorProto.INT4])
def test_rows_of_four_bits_in_onnxruntime(dtype: int) -> None:
    """A scale and a zero point for each row, or for each block of two; ids from the end, too."""
    rng = np.random.default_rng(0)
    low = 0 if dtype == onnx.TensorProto.UINT4 else -8
    source = model(
        """g (int64[N,2] i) => (float[] y) { d = DequantizeLinear<axis=0>(t, rs, rz)
        e = DequantizeLinear<axis=1, block_size=2>(t, bs, bz) a = Gather(d, i) b = Gather(e, i)
        y = Concat<axis=2>(a, b) }""",
        opset=21,
    )
    arrays = {"t": (9, 4), "rz": (9,), "bz": (9, 2)}
    for name, shape in arrays.items():
        codes = rng.integers(low, low + 16, shape).reshape(-1).tolist()
        source.graph.initializer.append(onnx.helper.make_tensor(name, dtype, shape, codes))
    for name, shape in {"rs": (9,), "bs": (9, 2)}.items():
        scales = rng.uniform(0.1, 1, shape).astype(np.float32)
        source.graph.initializer.append(onnx.numpy_helper.from_array(scales, name))
    feeds = {"i": np.array([[0, 8], [-9, 3], [4, -1]])}
    portable = graphopt.compile(source, "onnxruntime", inputs=feeds)
    assert isinstance(portable, OnnxModel)
    np.testing.assert_array_equal(portable.run(feeds)["y"], run(source, feeds)[0])
    ops = [node.op_type for node in onnx.load(portable.path).graph.node]
    assert ops.count("Gather") == 6
