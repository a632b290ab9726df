"""Axes of an op's operands that must be as long as one another."""

from __future__ import annotations

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node
from graphopt.ir.types import TensorType

_ALIGNED = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Mod",
        "Max",
        "Min",
        "Sum",
        "Mean",
        "Where",
        "And",
        "Or",
        "Xor",
    ]
    + ["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "MatMul", "PRelu"]
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
