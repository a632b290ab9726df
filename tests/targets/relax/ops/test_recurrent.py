"""RNN, GRU and LSTM against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from graphopt.errors import UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.testing import Compiled, run_onnxruntime

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
HIDDEN, WIDTH = 5, 3
RNG = np.random.default_rng(5)


def weights(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32) * 0.5


def layer(
    op: str, *, with_state: bool = False, with_lens: bool = False, **attrs: object
) -> onnx.ModelProto:
    """One recurrent node with a symbolic batch and number of steps."""
    d = 2 if attrs.get("direction") == "bidirectional" else 1
    gates = GATES[op]
    constants = {
        "w": weights(d, gates * HIDDEN, WIDTH),
        "r": weights(d, gates * HIDDEN, HIDDEN),
        "b": weights(d, 2 * gates * HIDDEN),
    }
    inputs = [oh.make_tensor_value_info("x", 1, ["steps", "batch", WIDTH])]
    operands = ["x", "w", "r", "b", "", ""]
    if with_lens:
        operands[4] = "lens"
        inputs.append(oh.make_tensor_value_info("lens", 6, ["batch"]))
    if with_state:
        operands[5] = "h"
        inputs.append(oh.make_tensor_value_info("h", 1, [d, "batch", HIDDEN]))
    results = ["y", "y_h", "y_c"][: 3 if op == "LSTM" else 2]
    node = oh.make_node(op, operands, results, hidden_size=HIDDEN, **attrs)
    outputs = [oh.make_tensor_value_info(name, 1, None) for name in results]
    initializers = [onnx.numpy_helper.from_array(a, n) for n, a in constants.items()]
    graph = oh.make_graph([node], "g", inputs, outputs, initializers)
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=10)


def agree(model: onnx.ModelProto) -> None:
    graph = onnx_io.from_proto(model)
    compiled = Compiled(graph)
    for steps, batch in ((1, 1), (4, 3), (7, 6)):
        feeds: dict[str, np.ndarray] = {"x": weights(steps, batch, WIDTH)}
        for value in graph.inputs[1:]:
            if value.name == "lens":
                feeds["lens"] = RNG.integers(1, steps + 1, batch).astype(np.int32)
            else:
                feeds["h"] = weights(value.tensor.dims[0], batch, HIDDEN)
        expected, found = run_onnxruntime(graph, feeds), compiled(feeds)
        for name, array in expected.items():
            # Both approximate exp and tanh; the difference adds up over a few steps.
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_directions(op: str, direction: str) -> None:
    agree(layer(op, direction=direction))


@pytest.mark.parametrize("op", GATES)
def test_initial_state_and_lengths(op: str) -> None:
    agree(layer(op, with_state=True, with_lens=True))


@pytest.mark.parametrize("linear", [0, 1])
def test_both_kinds_of_gru(linear: int) -> None:
    agree(layer("GRU", linear_before_reset=linear, with_state=True))


def test_limited_input() -> None:
    agree(layer("LSTM", clip=0.4))


def test_other_activations() -> None:
    agree(layer("GRU", activations=["HardSigmoid", "Relu"]))


def test_double_is_refused() -> None:
    model = layer("GRU")
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for value in model.graph.output:
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    with pytest.raises(UnsupportedOpError, match="float64"):
        Compiled(onnx_io.from_proto(model))
