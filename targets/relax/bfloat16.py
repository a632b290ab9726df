"""bfloat16 graphs as float32 graphs that store bfloat16.

Compiled code only moves bfloat16 about. Everything else is computed in float32 and rounded once per
op, which is what ONNX Runtime and ONNX's reference implementation do.
"""

from __future__ import annotations

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import TensorType, dtype_to_onnx

_MOVES = frozenset(
    ["BitCast", "Cast", "CastLike", "Compress", "Concat", "ConstantOfShape", "DepthToSpace"]
    + ["Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "If", "Loop"]
    + ["OneHot", "Pad", "Reshape", "ReverseSequence", "Scan", "Shape", "Size", "Slice"]
    + ["SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"]
)


def widen_bfloat16(graph: Graph) -> None:
    """Let every op on bfloat16 that computes work on float32, subgraphs included."""
    for node in list(graph.walk()):
        if node.domain == "" and node.op_type not in _MOVES and _touches(node):
            _widen(node)


def _touches(node: Node) -> bool:
    return any(v is not None and _is_narrow(v) for v in (*node.inputs, *node.outputs))


def _is_narrow(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype == "bfloat16"


def _widen(node: Node) -> None:
    graph = node.graph
    assert graph is not None
    narrow = [_is_narrow(value) for value in node.outputs]
    inputs = [_cast(v, "float32", node) if v and _is_narrow(v) else v for v in node.inputs]
    wide = graph.insert(
        node.op_type,
        inputs,
        node.attrs,
        outputs=[f"{value.name}.wide" for value in node.outputs],
        before=node,
        origin=node.origin,
    )
    for value, result, rounds in zip(node.outputs, wide.outputs, narrow):
        graph.replace_uses(value, _cast(result, "bfloat16", node) if rounds else result)
    graph.erase(node)


def _cast(value: Value, dtype: str, before: Node) -> Value:
    assert before.graph is not None
    attrs = {"to": dtype_to_onnx(dtype)}
    return before.graph.insert("Cast", [value], attrs, before=before, origin=before.origin).output
