"""`graphopt::StoredWeights`: its function bodies, and that they are gone once a model is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from graphopt.errors import InvalidModelError
from graphopt.ir import onnx_io
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops.quantized_lookup import packed
from graphopt.ops.stored_weights import DOMAIN, OP_TYPE, restored
from graphopt.testing import Compiled, run_onnxruntime

RNG = np.random.default_rng(0)
N = Sym.named("n")


def eight(axis: int) -> tuple[list[np.ndarray], dict[str, int], np.ndarray]:
    codes = RNG.integers(-127, 128, (6, 8)).astype(np.int8)
    scales = RNG.random(codes.shape[axis]).astype(np.float32)
    wanted = codes * (scales if axis else scales[:, None])
    return [codes, scales], {"bits": 8, "axis": axis}, wanted.astype(np.float32)


def four(
    groups: int, turned: int, padding: int = 0
) -> tuple[list[np.ndarray], dict[str, int], np.ndarray]:
    shape = (8, 6 + padding) if turned else (6, 8 + padding)
    codes = RNG.integers(-8, 8, shape).astype(np.int8)
    scales = RNG.random((shape[0], groups)).astype(np.float16)
    wanted = codes * np.repeat(scales.astype(np.float32), shape[1] // groups, axis=1)
    wanted = wanted[:, : shape[1] - padding]
    attrs = {"bits": 4, "columns": shape[1] - padding, **({"turned": 1} if turned else {})}
    return [packed(codes), scales], attrs, (wanted.T if turned else wanted).astype(np.float32)


CASES = {
    "scale per column": eight(1),
    "scale per row": eight(0),
    "4 bits": four(1, 0),
    "4 bits in groups": four(2, 0),
    "4 bits in groups, turned": four(3, 1),
    "4 bits in groups, padded": four(2, 0, 2),
    "4 bits in groups, padded and turned": four(4, 1, 2),
}


def layer(arrays: list[np.ndarray], attrs: dict[str, int]) -> Graph:
    graph = Graph(opsets={"": 18})
    x = graph.add_input("x", TensorType("float32", (N, 6)))
    stored = graph.insert(OP_TYPE, [graph.constant(a) for a in arrays], attrs, domain=DOMAIN)
    product = graph.insert("MatMul", [x, stored.output])
    graph.set_outputs([product.output, stored.output], ["y", "w"])
    return graph


@pytest.mark.parametrize("name", CASES)
def test_all_forms_agree(name: str) -> None:
    arrays, attrs, wanted = CASES[name]
    graph = layer(arrays, attrs)
    assert graph.outputs[1].shape == wanted.shape
    found = restored(next(iter(graph.nodes)))
    assert found is not None
    np.testing.assert_array_equal(found, wanted)
    feeds = {"x": RNG.normal(size=(5, 6)).astype(np.float32)}
    for answers in (run_onnxruntime(graph, feeds), Compiled(graph)(feeds)):
        np.testing.assert_array_equal(answers["w"], wanted)
        # Sums of six products, in another order.
        np.testing.assert_allclose(answers["y"], feeds["x"] @ wanted, rtol=1e-5, atol=1e-4)
    model = onnx_io.to_proto(graph)
    onnx.checker.check_model(model)
    assert [n.op for n in onnx_io.from_proto(model).nodes] == [f"{DOMAIN}::{OP_TYPE}", "MatMul"]


@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_restores_weights_when_it_loads_them(name: str, tmp_path: Path) -> None:
    """And so multiplies floats: what it makes of a DequantizeLinear rounds its inputs too."""
    graph = layer(*CASES[name][:2])
    graph.set_outputs(graph.outputs[:1], ["y"])
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    model = onnx_io.to_proto(graph).SerializeToString()
    onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    loaded = onnx.load(tmp_path / "loaded.onnx")
    assert [node.op_type for node in loaded.graph.node] == ["MatMul"]


@pytest.mark.parametrize(
    ("types", "attrs", "says"),
    [
        ((("int8", (6, 8)), ("float32", (6,))), {"bits": 8, "axis": 1}, "no scales"),
        ((("int8", (6, 8)), ("float64", (8,))), {"bits": 8, "axis": 1}, "no scales"),
        ((("int8", (6, 8)), ("float32", (8,))), {"bits": 8, "axis": 2}, "no scales"),
        ((("uint8", (6, 8)), ("float32", (8,))), {"bits": 8, "axis": 1}, "no codes"),
        ((("uint8", (6, 4)), ("float32", (6, 3))), {"bits": 4, "columns": 8}, "no scales"),
        ((("uint8", (6, 4)), ("float32", (8, 2))), {"bits": 4, "columns": 8}, "no scales"),
        ((("uint8", (6, 4)), ("float32", (6, 2))), {"bits": 4, "columns": 9}, "no scales"),
        ((("int8", (6, 4)), ("float32", (6, 2))), {"bits": 4, "columns": 8}, "no codes"),
    ],
)
def test_types_that_do_not_fit(types, attrs: dict[str, int], says: str) -> None:  # type: ignore
    graph = Graph(opsets={"": 18})
    inputs = [graph.add_input(f"x{k}", TensorType(*t)) for k, t in enumerate(types)]
    with pytest.raises(InvalidModelError, match=says):
        graph.insert(OP_TYPE, inputs, attrs, domain=DOMAIN)
