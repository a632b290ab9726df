"""`graphopt::QuantizedLookup`: what it stores, its function bodies, its types, its kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import pytest

from graphopt.errors import IdError, InvalidModelError
from graphopt.ir import onnx_io
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops.quantized_lookup import DOMAIN, OP_TYPE, packed, unpacked
from graphopt.testing import Compiled, run_onnxruntime

ROWS = 40
N = Sym.named("n")


@dataclass
class Table:
    """A table as the op takes it, and in full."""

    codes: np.ndarray
    scales: np.ndarray
    bits: int
    rows: np.ndarray


def table(bits: int, dim: int = 12, scale_dtype: type = np.float16) -> Table:
    rng = np.random.default_rng(0)
    low = -(2 ** (bits - 1))
    codes = rng.integers(low, -low, (ROWS, dim)).astype(np.int8)
    scales = rng.random(ROWS).astype(scale_dtype)
    rows = codes.astype(np.float32) * scales.astype(np.float32)[:, None]
    return Table(packed(codes) if bits == 4 else codes, scales, bits, rows)


def graph_of(small: Table, ints: str = "int64") -> Graph:
    graph = Graph(opsets={"": 18})
    ids = graph.add_input("ids", TensorType(ints, (N, 2)))
    inputs = [graph.constant(small.codes), graph.constant(small.scales), ids]
    node = graph.insert(OP_TYPE, inputs, {"bits": small.bits}, domain=DOMAIN)
    graph.set_outputs([node.output], ["rows"])
    return graph


def test_packing() -> None:
    codes = np.arange(-8, 8, dtype=np.int8).reshape(2, 8)
    np.testing.assert_array_equal(unpacked(packed(codes)), codes)


@pytest.mark.parametrize("ints", ["int32", "int64"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", [4, 16, 34, 64])
def test_all_forms_agree(bits: int, dim: int, ints: str) -> None:
    small = table(bits, dim, np.float16 if ints == "int64" else np.float32)
    graph = graph_of(small, ints)
    ids = np.array([[0, ROWS - 1], [-1, 3], [-ROWS, 7]]).astype(ints)
    wanted = small.rows[ids]
    np.testing.assert_array_equal(run_onnxruntime(graph, {"ids": ids})["rows"], wanted)
    np.testing.assert_array_equal(Compiled(graph)({"ids": ids})["rows"], wanted)


@pytest.mark.parametrize("bits", [8, 4])
def test_tables_beyond_the_cache(bits: int) -> None:
    """Their rows are asked for ahead of time, up to the last id."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-8, 8, (300_000, 8)).astype(np.int8)
    scales = rng.random(300_000).astype(np.float32)
    rows = codes.astype(np.float32) * scales[:, None]
    large = Table(packed(codes) if bits == 4 else codes, scales, bits, rows)
    ids = np.append(rng.integers(-300_000, 300_000, 40), [299_999, -1]).reshape(-1, 2)
    np.testing.assert_array_equal(Compiled(graph_of(large))({"ids": ids})["rows"], rows[ids])


@pytest.mark.parametrize("bits", [8, 4])
def test_ids_outside_the_table(bits: int) -> None:
    small = table(bits)
    ids = np.array([[ROWS, 2**62], [-ROWS - 1, -(2**62)]])
    with pytest.raises(IdError, match="id is out of range"):
        Compiled(graph_of(small))({"ids": ids})
    assert not Compiled(graph_of(small), "zero")({"ids": ids})["rows"].any()
    edges = small.rows[[[ROWS - 1, ROWS - 1], [0, 0]]]
    np.testing.assert_array_equal(Compiled(graph_of(small), "clamp")({"ids": ids})["rows"], edges)


def test_it_survives_a_file() -> None:
    small = table(4)
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
