"""One node of each op that changed between opsets 7 and 18, in each form that it ever had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*elements: Any) -> np.ndarray:
    return np.array(elements, np.int64)


X = floats(2, 3, 4)
IMAGE = floats(1, 2, 6, 6)
POSITIVE = np.abs(X) + 1
BOOL = X > 0
IDS = np.array([[0, 2], [1, 1]], np.int64)


@dataclass(frozen=True)
class Const:
    """An operand that is an initializer."""

    array: np.ndarray


class Case:
    """One node: operands are arrays (graph inputs), `Const`s, or None where omitted."""

    def __init__(
        self, *operands: Any, outputs: int = 1, since: int = 7, until: int = 99, **attrs: Any
    ) -> None:
        self.operands, self.outputs, self.attrs = operands, outputs, attrs
        self.since, self.until = since, until

    def model(self, op: str, opset: int) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        feeds, weights, names = {}, [], []
        for k, operand in enumerate(self.operands):
            names.append("" if operand is None else f"i{k}")
            if isinstance(operand, Const):
                weights.append(onnx.numpy_helper.from_array(operand.array, f"i{k}"))
            elif operand is not None:
                feeds[f"i{k}"] = operand
        outputs = [f"o{k}" for k in range(self.outputs)]
        node = helper.make_node(op, names, outputs, "the_node", **self.attrs)
        return model_of([node], feeds, outputs, opset, weights), feeds


def model_of(
    nodes: list[onnx.NodeProto],
    feeds: dict[str, np.ndarray],
    outputs: list[str],
    opset: int,
    weights: list[TensorProto] | None = None,
) -> onnx.ModelProto:
    """A model whose sizes are symbolic, the sizes of each input its own."""
    inputs = []
    for name, array in feeds.items():
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        shape = [f"{name}_{k}" for k in range(array.ndim)]
        inputs.append(helper.make_tensor_value_info(name, dtype, shape))
    infos = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph(nodes, "g", inputs, infos, weights or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


UNARY = [
    "Abs",
    "Ceil",
    "Erf",
    "Exp",
    "Floor",
    "Identity",
    "IsNaN",
    "LeakyRelu",
    "Neg",
    "NonZero",
    "Reciprocal",
    "Relu",
    "Shape",
    "Sigmoid",
    "Sign",
    "Size",
    "Tanh",
    "Transpose",
    "LRN",
    "MeanVarianceNormalization",
]
BINARY = [
    "Add",
    "Div",
    "Mul",
    "Sub",
    "Pow",
    "Greater",
    "Less",
    "GreaterOrEqual",
    "LessOrEqual",
    "PRelu",
]
VARIADIC = ["Max", "Min", "Mean", "Sum"]
REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
STATE = {"hidden_size": 5}


def recurrent(gates: int) -> list[Case]:
    weights = [floats(1, gates * 5, 4), floats(1, gates * 5, 5), floats(1, 2 * gates * 5)]
    return [
        Case(floats(3, 2, 4), *weights[:2], outputs=2, **STATE),
        Case(floats(3, 2, 4), *weights, np.array([3, 2], np.int32), outputs=2, **STATE),
    ]


def reduction(op: str) -> list[Case]:
    moved = 13 if op == "ReduceSum" else 18
    return [
        Case(POSITIVE),
        Case(POSITIVE, keepdims=0),
        Case(POSITIVE, until=moved, axes=[0, 2]),
        Case(POSITIVE, until=moved, axes=[1], keepdims=0),
        Case(POSITIVE, since=11, until=moved, axes=[-1]),
        Case(POSITIVE, Const(ints(-1)), since=moved, keepdims=0),
    ]


def flattened() -> list[Case]:
    """Softmax and its like: every axis, and shapes where the axis holds all there is."""
    return [
        Case(X),
        Case(X, axis=0),
        Case(X, axis=2),
        Case(X, axis=-2, since=11),
        Case(floats(4, 5)),
        Case(floats(4, 5, 1, 1)),
        Case(floats(1, 4, 5), axis=0),
        Case(np.zeros((2, 3, 0), np.float32)),
        Case(np.zeros((0, 3, 2), np.float32)),
    ]


BODY = helper.make_graph(
    [
        helper.make_node("Add", ["state", "element"], ["next"]),
        helper.make_node("Neg", ["next"], ["y"]),
    ],
    "body",
    [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("state", "element")],
    [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("next", "y")],
)
LOOP_BODY = helper.make_graph(
    [
        helper.make_node("Add", ["state", "state"], ["next"]),
        helper.make_node("Identity", ["go"], ["go_on"]),
        helper.make_node("Neg", ["next"], ["y"]),
    ],
    "body",
    [
        helper.make_tensor_value_info("k", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, [4]),
    ],
    [
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("next", "y")),
    ],
)


def branch(name: str, op: str) -> onnx.GraphProto:
    info = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    constant = helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(X))
    return helper.make_graph([constant, helper.make_node(op, ["c"], [name])], name, [], [info])


SCALES = np.array([1, 1, 2, 3], np.float32)
SMALLER = np.array([1, 1, 0.6, 0.6], np.float32)
STATISTICS = [POSITIVE[0, :, 0], X[0, :, 0], X[0, :, 1], POSITIVE[0, :, 2]]
PER_ELEMENT = [POSITIVE[0], X[0], X[1], POSITIVE[1]]

CASES: dict[str, list[Case]] = {
    **{op: [Case(X)] for op in UNARY},
    **{op: [Case(POSITIVE, np.abs(floats(4)) + 1)] for op in BINARY},
    **{op: [Case(X, POSITIVE), Case(X, POSITIVE, floats(4), since=8)] for op in VARIADIC},
    **{f"Reduce{kind}": reduction(f"Reduce{kind}") for kind in REDUCTIONS},
    **{op: flattened() for op in ("Softmax", "LogSoftmax", "Hardmax")},
    **{op: recurrent(gates) for op, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4))},
    "LRN": [Case(IMAGE, size=3)],
    "MeanVarianceNormalization": [Case(IMAGE)],
    "Log": [Case(POSITIVE)],
    "Sqrt": [Case(POSITIVE)],
    "Equal": [Case(IDS, ints(1, 2))],
    "Mod": [Case(IDS, ints(1, 2)), Case(X, POSITIVE, fmod=1)],
    "Where": [Case(BOOL, X, POSITIVE)],
    "ArgMax": [Case(X), Case(X, axis=2, keepdims=0)],
    "ArgMin": [Case(X), Case(X, axis=2, keepdims=0)],
    "AveragePool": [
        Case(IMAGE, kernel_shape=[3, 3]),
        Case(IMAGE, kernel_shape=[2, 2], strides=[2, 2], pads=[1, 0, 0, 1], count_include_pad=1),
        Case(IMAGE, kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
        Case(IMAGE, kernel_shape=[4, 4], strides=[3, 3], ceil_mode=1, since=10),
    ],
    "MaxPool": [
        Case(IMAGE, kernel_shape=[3, 3]),
        Case(IMAGE, kernel_shape=[2, 2], strides=[2, 2], outputs=2, since=8),
        Case(IMAGE, kernel_shape=[2, 2], dilations=[2, 2], since=10),
    ],
    "LpPool": [Case(IMAGE, kernel_shape=[3, 3], p=2)],
    "MaxUnpool": [
        Case(
            floats(1, 1, 2, 2),
            ints(0, 3, 8, 15).reshape(1, 1, 2, 2),
            kernel_shape=[2, 2],
            strides=[2, 2],
        )
    ],
    "Conv": [
        Case(IMAGE, floats(3, 2, 3, 3)),
        Case(IMAGE, floats(3, 2, 3, 3), auto_pad="SAME_LOWER"),
    ],
    "ConvTranspose": [
        Case(IMAGE, floats(2, 3, 3, 3)),
        Case(IMAGE, floats(2, 3, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    ],
    "BatchNormalization": [
        Case(X, *STATISTICS),
        Case(X, *map(Const, STATISTICS), epsilon=1e-3, momentum=0.5),
        Case(X, *STATISTICS, spatial=1, until=9),
        Case(X, *PER_ELEMENT, spatial=0, until=9),
    ],
    "Cast": [Case(X, to=TensorProto.INT32), Case(BOOL, to=TensorProto.DOUBLE)],
    "Clip": [
        Case(np.array([-np.inf, -2, 0.25, 3, np.inf, np.nan], np.float32), until=11),
        Case(X, min=0.0, until=11),
        Case(X, max=0.5, min=-0.5, until=11),
        Case(X, Const(np.float32(0)), None, since=11),
        Case(X, None, Const(np.float32(0.5)), since=11),
    ],
    "Compress": [Case(X, np.array([True, False, True])), Case(X, np.array([False, True]), axis=0)],
    "Concat": [Case(X, X, axis=1), Case(X, axis=0), Case(X, X, axis=-1)],
    "Constant": [
        Case(value=onnx.numpy_helper.from_array(X)),
        Case(value_float=0.5, since=12),
        Case(value_ints=[1, 2], since=12),
        Case(value_strings=["a", "b"], since=12),
    ],
    "CumSum": [Case(X, Const(np.int32(1))), Case(X, Const(np.int32(0)), exclusive=1, reverse=1)],
    "DepthToSpace": [Case(floats(1, 8, 2, 2), blocksize=2)],
    "SpaceToDepth": [Case(floats(1, 2, 4, 4), blocksize=2)],
    "QuantizeLinear": [
        Case(X, np.array(0.1, np.float32), np.array(128, np.uint8)),
        Case(X, POSITIVE[0, :, 0], np.zeros(3, np.int8), axis=1, since=13),
    ],
    "DequantizeLinear": [
        Case(np.arange(6, dtype=np.uint8), np.array(0.1, np.float32), np.array(3, np.uint8)),
        Case(np.ones((2, 3), np.int8), POSITIVE[0, :, 0], np.zeros(3, np.int8), axis=1, since=13),
    ],
    "Dropout": [
        Case(X, ratio=0.3, until=12),
        Case(X, ratio=0.3, outputs=2, until=12),
        Case(X, Const(np.float32(0.3)), outputs=2, since=12),
    ],
    "Expand": [Case(floats(3, 1), Const(ints(2, 3, 4)))],
    "Flatten": [Case(X), Case(X, axis=0), Case(X, axis=3), Case(X, axis=-1, since=11)],
    "Gather": [Case(floats(3, 2), IDS), Case(X, IDS, axis=2), Case(X, ints(-1), since=11)],
    "GatherElements": [Case(floats(3, 2), IDS)],
    "GatherND": [Case(floats(3, 3), IDS), Case(X, IDS[:, 1:], batch_dims=1, since=12)],
    "Gemm": [
        Case(floats(2, 3), floats(3, 4), floats(4)),
        Case(floats(3, 2), floats(4, 3), floats(2, 1), transA=1, transB=1, alpha=0.5, beta=2.0),
        Case(floats(2, 3), floats(3, 4), since=11),
    ],
    "MatMul": [Case(X, floats(4, 5)), Case(X, floats(2, 4, 5))],
    "If": [
        Case(np.array(True), then_branch=branch("t", "Neg"), else_branch=branch("e", "Abs")),
        Case(np.array(False), then_branch=branch("t", "Neg"), else_branch=branch("e", "Abs")),
    ],
    "Loop": [
        Case(Const(np.int64(3)), None, floats(4), outputs=2, body=LOOP_BODY),
        Case(np.array(2), np.array(True), floats(4), outputs=2, body=LOOP_BODY),
    ],
    "Scan": [
        Case(floats(4), floats(3, 4), outputs=2, num_scan_inputs=1, body=BODY, since=9),
        Case(
            floats(4),
            floats(4, 3),
            outputs=2,
            num_scan_inputs=1,
            body=BODY,
            since=9,
            scan_input_axes=[1],
            scan_output_axes=[1],
            scan_input_directions=[1],
        ),
    ],
    "NegativeLogLikelihoodLoss": [Case(floats(3, 5), ints(1, 0, 4))],
    "SoftmaxCrossEntropyLoss": [Case(floats(3, 5), ints(1, 0, 4))],
    "NonMaxSuppression": [
        Case(
            np.sort(np.abs(floats(1, 6, 4))),
            np.abs(floats(1, 2, 6)),
            Const(ints(3)),
            Const(np.array([0.5], np.float32)),
        )
    ],
    "OneHot": [
        Case(IDS, Const(np.int64(3)), Const(np.array([0, 1], np.float32))),
        Case(IDS, Const(np.int64(2)), Const(np.array([2, 5], np.int64)), axis=0),
        Case(ints(-1, 0, 7), Const(np.int64(3)), Const(np.array([0, 1], np.float32))),
    ],
    "Pad": [
        Case(X, pads=[0, 1, 0, 0, 0, 2], until=11),
        Case(X, pads=[0, 1, 0, 0, 0, -2], value=1.5, until=11),
        Case(X, pads=[0, 1, 0, 0, 0, 2], mode="reflect", until=11),
        Case(X, Const(ints(0, 1, 0, 0, 0, 2)), Const(np.float32(3)), since=11),
        Case(X, Const(ints(1, 2)), None, Const(ints(1)), mode="edge", since=18),
    ],
    "Reshape": [Case(X, Const(ints(0, -1)))],
    "Resize": [
        Case(IMAGE, Const(SCALES), until=11),
        Case(IMAGE, Const(SMALLER), until=11),
        Case(IMAGE, Const(SCALES), mode="linear", until=11),
        Case(IMAGE, SCALES, mode="linear", until=11),
        Case(IMAGE, Const(floats(0)), Const(SCALES), since=11),
        Case(
            IMAGE,
            Const(floats(0)),
            Const(floats(0)),
            Const(ints(1, 2, 4, 9)),
            since=11,
            mode="linear",
            coordinate_transformation_mode="align_corners",
        ),
        Case(IMAGE, None, Const(SMALLER), since=13, mode="cubic"),
    ],
    "Upsample": [
        Case(IMAGE, scales=[1.0, 1.0, 2.0, 3.0], until=9),
        Case(IMAGE, scales=[1.0, 1.0, 2.0, 3.0], mode="linear", until=9),
        Case(IMAGE, SCALES, since=9, until=10),
        Case(IMAGE, Const(SCALES), mode="linear", since=9, until=10),
    ],
    "RoiAlign": [
        Case(
            IMAGE,
            np.array([[0, 0, 3, 3], [1, 1, 4, 5]], np.float32),
            ints(0, 0),
            output_width=2,
            output_height=2,
        )
    ],
    "Scatter": [Case(floats(3, 2), IDS, floats(2, 2), until=11)],
    "ScatterElements": [
        Case(floats(3, 2), IDS, floats(2, 2), axis=0),
        Case(floats(3, 2), IDS[:1], floats(1, 2), reduction="add", since=16),
    ],
    "ScatterND": [Case(floats(3, 3), IDS, floats(2))],
    "Shape": [Case(X), Case(X, start=1, since=15), Case(X, start=-2, end=-1, since=15)],
    "Slice": [
        Case(X, starts=[1, 0], ends=[3, 2], until=10),
        Case(X, starts=[1, -2], ends=[2**40, -1], axes=[1, 2], until=10),
        Case(X, Const(ints(1)), Const(ints(3)), Const(ints(2)), since=10),
        Case(X, Const(ints(3)), Const(ints(-9)), Const(ints(-1)), Const(ints(-2)), since=10),
        Case(X, ints(1), ints(3), ints(-1), since=10),
    ],
    "Split": [
        Case(X, axis=2, outputs=2),
        Case(X, axis=2, outputs=2, split=[1, 3], until=13),
        Case(X, Const(ints(1, 3)), axis=-1, outputs=2, since=13),
    ],
    "Squeeze": [
        Case(Const(floats(1, 3, 1))),
        Case(floats(1, 3, 1), axes=[2], until=13),
        Case(floats(1, 3, 1), axes=[-1], since=11, until=13),
        Case(floats(1, 3, 1), Const(ints(0)), since=13),
    ],
    "Unsqueeze": [
        Case(X, axes=[0, 4], until=13),
        Case(X, axes=[-1], since=11, until=13),
        Case(X, Const(ints(0)), since=13),
    ],
    "Tile": [Case(X, Const(ints(1, 2, 3)))],
    "TopK": [
        Case(X, k=2, outputs=2, until=10),
        Case(X, k=2, axis=1, outputs=2, until=10),
        Case(X, Const(ints(2)), outputs=2, since=10),
        Case(X, ints(2), largest=0, outputs=2, since=11),
    ],
}
# Optional values are neither inputs nor constants, so no single node of these makes a model.
UNTESTED = {"OptionalGetElement", "OptionalHasElement"}
