"""Ops that broadcast, and values that are nothing but a smaller one broadcast."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.ir.broadcast import broadcast
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.rewrite import Rewriter, op

# Each element of their result depends on one element of each operand, and has one right value.
BINARY = (
    (op.Add, op.Sub, op.Mul, op.Div, op.Mod, op.And, op.Or, op.Xor)
    + (op.Equal, op.Less, op.Greater, op.LessOrEqual, op.GreaterOrEqual)
    + (op.BitwiseAnd, op.BitwiseOr, op.BitwiseXor, op.PRelu)
)
VARIADIC = (op.Where, op.Max, op.Min, op.Sum)
UNARY = (op.Cast, op.Not, op.Neg, op.Abs, op.Relu, op.Sqrt, op.Floor, op.Ceil, op.Sign)


def unexpanded(rw: Rewriter, value: Value) -> Value | None:
    """A smaller value that broadcasts to `value`, None if it is not computed from one."""
    node = value.producer
    if node is not None and node.op == "Expand":
        return node.inputs[0]
    if node is not None and node.op == "ConstantOfShape":
        fill = node.attrs.get("value", np.zeros(1, np.float32))
        return rw.const(np.asarray(fill).reshape(()))
    return None


def expanded_shape(value: Value) -> Value | None:
    """The shape operand of the op that expanded to `value`."""
    node = value.producer
    return None if node is None else node.inputs[1 if node.op == "Expand" else 0]


def broadcast_shape(values: Sequence[Value | None]) -> tuple[Dim | None, ...] | None:
    """The shape that values broadcast to, None if that is not known."""
    shapes = [value.shape for value in values if value is not None]
    if any(shape is None for shape in shapes):
        return None
    try:
        return tuple(broadcast(shapes))  # type: ignore[arg-type]
    except ValueError:
        return None


def is_alone(value: Value, node: Node) -> bool:
    """True if nothing but `node` reads `value`."""
    return all(use.user is node for use in value.uses)
