"""The recurrence of a GRU on a GPU against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from graphopt.ir.graph import Graph
from graphopt.ir.types import TensorType
from graphopt.ops import gru
from graphopt.testing import run_onnxruntime

from .conftest import Runner

HIDDEN, WIDTH = 20, 6


def model(directions: int, linear: int, direction: str) -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    wide = 3 * HIDDEN
    arrays = {"w": (directions, wide, WIDTH), "r": (directions, wide, HIDDEN)}
    arrays["b"] = (directions, 2 * wide)
    parsed = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 21]>
        agraph (float[t, n, {WIDTH}] x, int32[n] lens, float[{directions}, n, {HIDDEN}] start)
            => (float[t, {directions}, n, {HIDDEN}] y, float[{directions}, n, {HIDDEN}] last) {{
            y, last = GRU <hidden_size = {HIDDEN}, linear_before_reset = {linear},
                           direction = "{direction}"> (x, w, r, b, lens, start)
        }}"""
    )
    for name, shape in arrays.items():
        array = (rng.standard_normal(shape) * 0.3).astype(np.float32)
        parsed.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return parsed


@pytest.mark.parametrize(
    ("linear", "direction"), [(0, "forward"), (1, "reverse"), (1, "bidirectional")]
)
def test_against_onnxruntime(linear: int, direction: str, run_model: Runner) -> None:
    directions, rng = 2 if direction == "bidirectional" else 1, np.random.default_rng(2)
    source = model(directions, linear, direction)
    feed = {
        "x": rng.standard_normal((4, 3, WIDTH)).astype(np.float32),
        "lens": np.array([4, 2, 1], np.int32),
        "start": rng.standard_normal((directions, 3, HIDDEN)).astype(np.float32),
    }
    session = onnxruntime.InferenceSession(source.SerializeToString())
    (found,) = run_model(source, feed)
    for name, expected in zip(("y", "last"), session.run(["y", "last"], feed)):
        # float32 sums of 20 products, four steps
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("linear", "initial"), [(0, True), (1, False)])
def test_last_state(linear: int, initial: bool, run_model: Runner) -> None:
    rng, graph = np.random.default_rng(3), Graph(opsets={"": 18, gru.DOMAIN: 1})
    shapes = {"x": (4, 3, WIDTH), "w": (1, 3 * HIDDEN, WIDTH), "r": (1, 3 * HIDDEN, HIDDEN)}
    shapes |= {"b": (1, 6 * HIDDEN)} | ({"start": (1, 3, HIDDEN)} if initial else {})
    values = [graph.add_input(name, TensorType("float32", dims)) for name, dims in shapes.items()]
    attrs = {"hidden_size": HIDDEN, "linear_before_reset": linear}
    graph.set_outputs([graph.insert(gru.OP_TYPE, values, attrs, domain=gru.DOMAIN).output], ["y"])
    feed = {
        name: (rng.standard_normal(dims) * 0.3).astype(np.float32) for name, dims in shapes.items()
    }
    (found,) = run_model(graph, feed)
    # float32 sums of 20 products, four steps
    np.testing.assert_allclose(found["y"], run_onnxruntime(graph, feed)["y"], rtol=1e-4, atol=1e-5)
