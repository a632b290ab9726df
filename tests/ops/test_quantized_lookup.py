"""`graphopt::QuantizedLookup`: what it stores, its function bodies, its types, its kernels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt.errors import IdError, InvalidModelError
from graphopt.ir import onnx_io
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops.quantized_lookup import DOMAIN, OP_TYPE, QuantizedTable, packed, unpacked
from graphopt.testing import Compiled, run_onnxruntime

ROWS = 40
N = Sym.named("n")


def table(dim: int = 12, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(ROWS, dim)) * np.exp(rng.normal(0, spread, (ROWS, 1)))
    rows[3] = 0
    return rows.astype(np.float32)


def graph_of(small: QuantizedTable, ints: str = "int64") -> Graph:
    graph = Graph(opsets={"": 18})
    ids = graph.add_input("ids", TensorType(ints, (N, 2)))
    inputs = [graph.constant(small.codes), graph.constant(small.scales), ids]
    node = graph.insert(OP_TYPE, inputs, {"bits": small.bits}, domain=DOMAIN)
    graph.set_outputs([node.output], ["rows"])
    return graph


def restored(small: QuantizedTable) -> np.ndarray:
    codes = small.codes.astype(np.int8) if small.bits == 8 else unpacked(small.codes)
    return codes.astype(np.float32) * small.scales.astype(np.float32)[:, None]


@pytest.mark.parametrize(("bits", "worst"), [(8, 0.01), (4, 0.16)])
def test_what_is_lost(bits: int, worst: float) -> None:
    rows = table()
    small = QuantizedTable.of(rows, bits)
    lost = restored(small) - rows
    share = np.sqrt(np.square(lost).mean(axis=1)) / np.sqrt(np.square(rows).mean(axis=1) + 1e-30)
    assert share.max() < worst
    assert small.error == pytest.approx(np.sqrt(np.square(lost).mean()), rel=1e-5)
    assert small.nbytes == rows.size * bits // 8 + ROWS * 2


def test_rows_of_zeros_stay_zeros() -> None:
    for bits in (4, 8):
        assert not restored(QuantizedTable.of(table(), bits))[3].any()
        nothing = QuantizedTable.of(np.zeros((4, 8), np.float32), bits)
        assert not restored(nothing).any()


@pytest.mark.parametrize("factor", [1e-6, 1e9])
def test_scales_that_half_precision_cannot_hold_have_32_bits(factor: float) -> None:
    rows = table() * np.float32(factor)
    small = QuantizedTable.of(rows, 8)
    assert small.scales.dtype == np.float32
    np.testing.assert_allclose(restored(small), rows, atol=0.01 * np.abs(rows).max())


def test_packing() -> None:
    codes = np.arange(-8, 8, dtype=np.int8).reshape(2, 8)
    np.testing.assert_array_equal(unpacked(packed(codes)), codes)


@pytest.mark.parametrize("ints", ["int32", "int64"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", [4, 16, 34, 64])
def test_all_forms_agree(bits: int, dim: int, ints: str) -> None:
    small = QuantizedTable.of(table(dim), bits)
    graph = graph_of(small, ints)
    ids = np.array([[0, ROWS - 1], [-1, 3], [-ROWS, 7]]).astype(ints)
    wanted = restored(small)[ids]
    np.testing.assert_array_equal(run_onnxruntime(graph, {"ids": ids})["rows"], wanted)
    np.testing.assert_array_equal(Compiled(graph)({"ids": ids})["rows"], wanted)


@pytest.mark.parametrize("bits", [8, 4])
def test_ids_outside_the_table(bits: int) -> None:
    small = QuantizedTable.of(table(), bits)
    ids = np.array([[ROWS, 2**62], [-ROWS - 1, -(2**62)]])
    with pytest.raises(IdError, match="id is out of range"):
        Compiled(graph_of(small))({"ids": ids})
    assert not Compiled(graph_of(small), "zero")({"ids": ids})["rows"].any()
    edges = restored(small)[[[ROWS - 1, ROWS - 1], [0, 0]]]
    np.testing.assert_array_equal(Compiled(graph_of(small), "clamp")({"ids": ids})["rows"], edges)


def test_it_survives_a_file() -> None:
    small = QuantizedTable.of(table(), 4)
    model = onnx_io.to_proto(graph_of(small))
    onnx.checker.check_model(model)
    (node,) = onnx_io.from_proto(model).nodes
    assert (node.op, node.attr("bits")) == ("graphopt::QuantizedLookup", 4)


@pytest.mark.parametrize(
    ("dtype", "scales", "ids", "says"),
    [
        ("uint8", "float16", "int64", "no codes of 8 bits"),
        ("int8", "float64", "int64", "no scales"),
        ("int8", "float16", "float32", "no ids"),
    ],
)
def test_types_that_do_not_fit(dtype: str, scales: str, ids: str, says: str) -> None:
    graph = Graph(opsets={"": 18})
    types = [(dtype, (ROWS, 4)), (scales, (ROWS,)), (ids, (N,))]
    inputs = [graph.add_input(f"x{k}", TensorType(*t)) for k, t in enumerate(types)]
    with pytest.raises(InvalidModelError, match=says):
        graph.insert(OP_TYPE, inputs, {"bits": 8}, domain=DOMAIN)
