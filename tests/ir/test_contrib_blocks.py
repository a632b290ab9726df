"""Layers and tables that ONNX Runtime stores in blocks are read as what it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_models import run

from graphopt.api import compile
from graphopt.errors import InvalidModelError, UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.testing import run_onnxruntime

rng = np.random.default_rng(0)


def model(
    op: str, constants: dict[str, np.ndarray], attrs: dict[str, Any], opset: int = 21
) -> onnx.ModelProto:
    """One op; its operands are `constants` in the order of their names, and `x` first or second."""
    gathers = op == "GatherBlockQuantized"
    names = sorted(constants)
    names.insert(1 if gathers else 0, "x")
    shape = ["N", 2] if gathers else ["N", attrs["K"]]
    kind = onnx.TensorProto.INT64 if gathers else onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], domain="com.microsoft", **attrs)],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def both(proto: onnx.ModelProto, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    graph = onnx_io.from_proto(proto)
    assert not any(node.domain for node in graph.nodes)
    return run_onnxruntime(graph, {"x": x})["y"], run(proto, {"x": x})[0]


def layer(bits: int, zeros: str, width: int) -> onnx.ModelProto:
    blocks = -(-width // 16)
    constants = {
        "C": rng.integers(0, 256, (6, blocks, 2 * bits), dtype=np.uint8),
        "D": rng.uniform(0.01, 0.1, (6, blocks)).astype(np.float32),
    }
    if zeros == "codes":
        packed = -(-blocks * bits // 8)
        constants["E"] = rng.integers(0, 256, (6, packed), dtype=np.uint8)
    elif zeros:
        constants["E"] = rng.uniform(0, 2**bits, (6, blocks)).astype(np.float32)
    attrs = {"K": width, "N": 6, "bits": bits, "block_size": 16}
    return model("MatMulNBits", constants, attrs)


@pytest.mark.parametrize("zeros", ["", "codes", "floats"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_layers_of_few_bits(bits: int, zeros: str) -> None:
    if (bits, zeros) == (8, "floats"):
        pytest.skip("ONNX Runtime has no such kernel")
    for width in (32, 40):  # whole blocks, and a last one of which a half is not used
        x = rng.normal(size=(5, width)).astype(np.float32)
        got, expected = both(layer(bits, zeros, width), x)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("width", [32, 5])
def test_layers_of_bitsandbytes(kind: int, width: int) -> None:
    size = 3 * width  # blocks go on from one output to the next
    constants = {
        "C": rng.integers(0, 256, -(-size // 2), dtype=np.uint8),
        "D": rng.uniform(0.1, 1, -(-size // 16)).astype(np.float32),
    }
    attrs = {"K": width, "N": 3, "block_size": 16, "quant_type": kind}
    x = rng.normal(size=(5, width)).astype(np.float32)
    got, expected = both(model("MatMulBnb4", constants, attrs), x)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def table(dtype: str, zeros: bool, width: int = 40, opset: int = 21) -> onnx.ModelProto:
    """A table of 9 rows: codes, scales, zeros."""
    blocks, bits = -(-width // 16), int(dtype[-1])

    def codes(columns: int) -> np.ndarray:
        if dtype.startswith("packed"):
            shape = (9, -(-columns * bits // 8))
            return rng.integers(0, 256, shape, dtype=np.uint8)
        low = -8 if dtype == "int4" else 0
        return rng.integers(low, low + 16, (9, columns)).astype(getattr(ml_dtypes, dtype))

    constants = {"A": codes(width), "C": rng.uniform(0.01, 0.1, (9, blocks)).astype(np.float32)}
    if zeros:
        constants["D"] = codes(blocks)
    attrs = {"block_size": 16, "gather_axis": 0, "quantize_axis": 1}
    if dtype != "int4":
        attrs["bits"] = bits
    return model("GatherBlockQuantized", constants, attrs, opset)


IDS = np.array([[0, 8], [-1, -9], [4, 4]])


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", ["packed2", "packed4", "packed8", "uint4", "int4"])
def test_tables(dtype: str, zeros: bool) -> None:
    got, expected = both(table(dtype, zeros), IDS)
    np.testing.assert_array_equal(got, expected)


def test_a_table_of_an_older_opset() -> None:
    """One block a row needs nothing of opset 21."""
    got, expected = both(table("packed4", zeros=True, width=16, opset=17), IDS)
    np.testing.assert_array_equal(got, expected)


def test_compiled_tables(tmp_path: Path) -> None:
    proto = table("uint4", zeros=False)
    onnx.save(proto, tmp_path / "model.onnx")
    result = compile(tmp_path / "model.onnx", "cpu", output=tmp_path / "out.gopt")
    expected = run(proto, {"x": IDS})[0]
    np.testing.assert_allclose(result.run({"x": IDS})["y"], expected, rtol=1e-6)


def test_what_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="opset 21"):
        onnx_io.from_proto(table("packed4", zeros=False, opset=17))
    with pytest.raises(UnsupportedOpError, match="opset 21"):
        onnx_io.from_proto(table("int4", zeros=False, width=16, opset=17))
    given = layer(4, "", 32)
    given.graph.node[0].input.extend(["", "C"])
    with pytest.raises(UnsupportedOpError, match="order of their own"):
        onnx_io.from_proto(given)
    computed = layer(4, "", 32)
    computed.graph.node.insert(0, helper.make_node("Identity", ["C"], ["F"]))
    computed.graph.node[1].input[1] = "F"
    with pytest.raises(UnsupportedOpError, match="input 1 is no constant"):
        onnx_io.from_proto(computed)


def test_what_does_not_fit() -> None:
    short = layer(4, "", 32)
    short.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones(5, np.float32), "D"))
    with pytest.raises(InvalidModelError, match="5 elements"):
        onnx_io.from_proto(short)
    wide = table("uint4", zeros=False)
    wide.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones((9, 2), np.float32), "C"))
    with pytest.raises(InvalidModelError, match="a scale for each block"):
        onnx_io.from_proto(wide)
    sizeless = layer(4, "", 32)
    del sizeless.graph.node[0].attribute[:]
    with pytest.raises(InvalidModelError, match="'K' must be"):
        onnx_io.from_proto(sizeless)
