"""ONNX models for tests, written as text, and their answers in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from onnx import ModelProto, helper, numpy_helper

FUNCTIONS = """
<domain: "local", opset_import: ["": 18, "local": 1]> f (x) => (y) { u = Abs(x) y = Neg(u) }
<domain: "local", opset_import: ["": 18, "local": 1]> twice (x) => (y) {
    u = local.f(x) y = local.f(u) }
<domain: "local", opset_import: ["": 18, "local": 1]> leaky <slope> (x) => (y) {
    y = LeakyRelu <alpha: float = @slope> (x) }
"""


def model(text: str, opset: int = 18, functions: str = "") -> ModelProto:
    """A model from the text of its graph and of its local functions; `_` is an omitted operand."""
    header = f'<ir_version: 9, opset_import: ["": {opset}, "local": 1]>\n'
    source = onnx.parser.parse_model(header + text + functions)
    for node in source.graph.node:
        node.input[:] = ["" if name == "_" else name for name in node.input]
        node.output[:] = ["" if name == "_" else name for name in node.output]
    return source


def run(source: ModelProto, feeds: Mapping[str, np.ndarray]) -> list[Any]:
    """The outputs of a model in ONNX Runtime, each op as it stands."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        source.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(feeds))


def sparse(where: np.ndarray, shape: Sequence[int] = (2, 3)) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([5, 7], np.float32), "w")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(where, "w_at"), list(shape))
