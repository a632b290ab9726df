"""Recurrent layers that may be given no samples, which end the process in ONNX Runtime 1.32."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper

GUARD = "graphopt_no_samples"
COMPLAINT = (
    "a recurrent layer is given no samples, on which ONNX Runtime may end the process; "
    "give inputs of which it keeps some"
)
_RECURRENT = frozenset(["GRU", "LSTM", "RNN"])
_PICKING = frozenset(["NonZero", "Compress"])


def guarded(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """`model` where a node, whose name begins with `GUARD`, fails before the process ends.

    None if none is needed: ONNX Runtime looks for the longest of the lengths of sequences, also
    where there are none, so it takes lengths, and a choice of samples that may leave none.
    """
    nodes = model.graph.node
    at_risk = [node for node in nodes if node.op_type in _RECURRENT and len(node.input) > 4]
    if not any(node.input[4] for node in at_risk):
        return None
    if not any(node.op_type in _PICKING for node in nodes):
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    zero = helper.make_tensor(GUARD, onnx.TensorProto.INT64, [1], [0])
    copy.graph.initializer.append(zero)
    for number, node in enumerate(nodes):
        if node.op_type in _RECURRENT and len(node.input) > 4 and node.input[4]:
            checks = list(_first_exists(node.input[4], f"{GUARD}{number}"))
            copy.graph.node.extend(checks)
            copy.graph.node.append(node)
            copy.graph.node[-1].input[4] = checks[-1].output[0]
        else:
            copy.graph.node.append(node)
    return copy


def _first_exists(lengths: str, name: str) -> Iterator[onnx.NodeProto]:
    """Nodes that give the same lengths, and fail where there is no first one."""
    first, zero = f"{name}_first", f"{name}_zero"
    yield helper.make_node("Gather", [lengths, GUARD], [first], name)
    yield helper.make_node("Sub", [first, first], [zero])
    yield helper.make_node("Add", [lengths, zero], [name])
