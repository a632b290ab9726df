"""Nodes evaluated at build time, by ONNX Runtime: they keep the bits they would have had."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.ir import schema
from graphopt.ir.content import as_array
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.onnx_io import to_proto
from graphopt.ir.types import TensorType
from graphopt.passes._execution import session

_DTYPES = frozenset(
    ["bool", "string", "float16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)


def is_pure(node: Node) -> bool:
    """True if equal operands give equal results, whatever else happens."""
    return not node.subgraphs and schema.is_deterministic(node.op_type, node.domain)


def evaluate(node: Node, operands: Sequence[np.ndarray | None]) -> list[np.ndarray] | str:
    """The outputs of `node` for given operands, or why they cannot be computed."""
    for value in (*node.inputs, *node.outputs):
        if value is not None and not (
            isinstance(value.type, TensorType) and value.type.dtype in _DTYPES
        ):
            return f"{value.type} cannot be evaluated at build time"
    graph, feeds = _alone(node, operands)
    try:
        results = session(to_proto(graph).SerializeToString()).run(None, feeds)
        return [np.asarray(array) for array in results]
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        return f"ONNX Runtime cannot evaluate it: {str(error).strip().splitlines()[0]}"


def _alone(
    node: Node, operands: Sequence[np.ndarray | None]
) -> tuple[Graph, dict[str, np.ndarray]]:
    """A graph of this node only, with its operands as inputs so that none is copied."""
    assert node.graph is not None
    graph = Graph("fold", dict(node.graph.opsets))
    inputs: list[Value | None] = []
    feeds: dict[str, np.ndarray] = {}
    for index, (value, array) in enumerate(zip(node.inputs, operands)):
        if value is None or array is None:
            inputs.append(None)
            continue
        inputs.append(graph.add_input(f"input{index}", TensorType(value.dtype, array.shape)))
        feeds[f"input{index}"] = np.ascontiguousarray(array).reshape(array.shape)
    copied = graph.insert(
        node.op_type, inputs, node.attrs, domain=node.domain, outputs=len(node.outputs)
    )
    graph.set_outputs(copied.outputs, [f"output{k}" for k in range(len(copied.outputs))])
    return graph, feeds


def constant_of(value: Value, limit: int = 1024) -> np.ndarray | None:
    """What `value` holds if that follows from constants of at most `limit` bytes each."""
    return _constant_of(value, limit, {})


def _constant_of(
    value: Value, limit: int, known: dict[Value, np.ndarray | None]
) -> np.ndarray | None:
    if value not in known:
        known[value] = None  # for now; no value depends on itself
        known[value] = _follow(value, limit, known)
    return known[value]


def _follow(value: Value, limit: int, known: dict[Value, np.ndarray | None]) -> np.ndarray | None:
    if value.const is not None:
        return value.const if value.const.nbytes <= limit else None
    if value.content is not None:
        array = as_array(value.content, value.dtype)
        if array is not None:
            return array
    node = value.producer
    if node is None or not is_pure(node):
        return None
    operands: list[np.ndarray | None] = []
    for operand in node.inputs:
        operands.append(None if operand is None else _constant_of(operand, limit, known))
        if operand is not None and operands[-1] is None:
            return None
    results = evaluate(node, operands)
    return None if isinstance(results, str) else results[node.outputs.index(value)]
