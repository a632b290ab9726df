"""Scores that classifiers give out as maps from labels, one a sample: the tensor that they are of.

Exporters of scikit-learn write a `ZipMap` unless they are told not to, CatBoost's always does.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from graphopt.errors import UnsupportedOpError


def without_maps(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """`model` with tensors float32[samples, labels] for outputs that are maps, and their names.

    Labels are in the order of the maps, which is that of numbers or of bytes. A copy if there are
    any; maps that the graph itself reads stay.

    Raises:
        UnsupportedOpError: the columns of scores are in another order.
    """
    read = {name for node in model.graph.node for name in node.input}
    given = {value.name for value in model.graph.output} - read
    names = [n.output[0] for n in model.graph.node if _is_map(n) and n.output[0] in given]
    if not names:
        return model, []
    tensors = onnx.ModelProto()
    tensors.CopyFrom(model)
    for node in tensors.graph.node:
        if _is_map(node) and node.output[0] in names:
            _check_order(node)
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
    for value in tensors.graph.output:
        if value.name in names:
            value.type.Clear()
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return tensors, names


def _is_map(node: NodeProto) -> bool:
    return node.op_type == "ZipMap" and len(node.input) == len(node.output) == 1


def _check_order(node: NodeProto) -> None:
    labels = [label for a in node.attribute for label in (*a.ints, *a.strings)]
    if not labels or any(a >= b for a, b in pairwise(labels)):
        reason = "maps of labels that do not rise are not supported; export with zipmap=False"
        raise UnsupportedOpError(node.op_type, reason, (node.name or node.output[0],))


def as_array(result: Any) -> Any:
    """What an engine gives out, float32[samples, labels] if it is maps of scores."""
    if not (isinstance(result, list) and all(isinstance(scores, dict) for scores in result)):
        return result
    rows = [list(scores.values()) for scores in result]
    return np.array(rows, np.float32) if rows else np.zeros((0, 0), np.float32)
