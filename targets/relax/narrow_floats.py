"""Graphs of narrow floats as float32 graphs that store them.

Compiled code only moves bfloat16 and float16 about. Everything else is computed in
float32. bfloat16 is rounded once per op, which is what ONNX Runtime and ONNX's reference
implementation do; of float16 ONNX Runtime rounds what is stored, not what the next op reads.
"""

from __future__ import annotations

import numpy as np

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
    _widen_all(graph, "bfloat16", {})


def widen_float16(graph: Graph) -> None:
    """Let every op on float16 that computes work on float32, subgraphs included.

    What one computes and another computes with is not rounded in between.
    """
    wide: dict[Value, Value] = {}
    _widen_all(graph, "float16", wide)
    for rounded in wide:
        if not rounded.uses and rounded.producer is not None:
            assert rounded.producer.graph is not None
            rounded.producer.graph.erase(rounded.producer)


def _widen_all(graph: Graph, dtype: str, wide: dict[Value, Value]) -> None:
    for node in list(graph.walk()):
        if node.domain == "" and node.op_type not in _MOVES and _touches(node, dtype):
            _widen(node, dtype, wide)


def _touches(node: Node, dtype: str) -> bool:
    return any(v is not None and _is(v, dtype) for v in (*node.inputs, *node.outputs))


def _is(value: Value, dtype: str) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype == dtype


def _widen(node: Node, dtype: str, wide: dict[Value, Value]) -> None:
    """`wide` holds, if results are not to be rounded in between, what was rounded to each."""
    graph = node.graph
    assert graph is not None
    narrow = [_is(value, dtype) for value in node.outputs]
    inputs = [_widened(v, node, wide) if v and _is(v, dtype) else v for v in node.inputs]
    made = graph.insert(
        node.op_type,
        inputs,
        node.attrs,
        outputs=[f"{value.name}.wide" for value in node.outputs],
        before=node,
        origin=node.origin,
    )
    for value, result, rounds in zip(node.outputs, made.outputs, narrow):
        rounded = _cast(result, dtype, node) if rounds else result
        if rounds and dtype == "float16":
            wide[rounded] = result
        graph.replace_uses(value, rounded)
    graph.erase(node)


def _widened(value: Value, before: Node, wide: dict[Value, Value]) -> Value:
    if value in wide:
        return wide[value]
    if value.const is not None and before.graph is not None:
        return before.graph.constant(value.const.astype(np.float32))
    return _cast(value, "float32", before)


def _cast(value: Value, dtype: str, before: Node) -> Value:
    assert before.graph is not None
    attrs = {"to": dtype_to_onnx(dtype)}
    return before.graph.insert("Cast", [value], attrs, before=before, origin=before.origin).output
