"""Axes of an op's operands that must be as long as one another."""

from __future__ import annotations

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node
from graphopt.ir.types import TensorType

_ALIGNED = frozenset(
    ["Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Sum", "Mean", "Where", "MatMul"]
    + ["And", "Or", "Xor", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "PRelu"]
)


def columns(node: Node) -> list[list[Dim]]:
    """Sizes of the operands that this standard op needs to be equal; those that broadcast, or 1."""
    if node.domain:
        return []
    types = [value.type for value in node.inputs if value is not None]
    shapes = [t.shape or () if isinstance(t, TensorType) else () for t in types]
    if node.op_type == "Concat" and shapes:
        count = len(shapes[0])
        axis = node.attr("axis") % count if count else 0
        return [[s[k] for s in shapes if len(s) == count] for k in range(count) if k != axis]
    if node.op_type not in _ALIGNED:
        return []
    skip = 2 if node.op_type == "MatMul" else 0
    depth = max((len(s) for s in shapes), default=0)
    return [[s[-k] for s in shapes if len(s) >= k] for k in range(1 + skip, depth + 1)]


def added_up(node: Node) -> tuple[Dim, Dim] | None:
    """The two sizes of what this standard op multiplies and adds up, None if it does not."""
    shapes = [value.shape if value is not None else None for value in node.inputs[:2]]
    if node.domain or len(shapes) < 2 or not all(shapes):
        return None
    a, b = (tuple(shape or ()) for shape in shapes)
    if node.op_type == "MatMul":
        return a[-1], b[max(0, len(b) - 2)]
    if node.op_type == "Gemm":
        return a[0 if node.attr("transA", 0) else 1], b[1 if node.attr("transB", 0) else 0]
    if node.op_type in ("GRU", "LSTM", "RNN"):
        return a[2], b[2]
    return None
