"""Expand after the ops that work on each element by itself."""

from __future__ import annotations

from graphopt.ir.content import known_ints
from graphopt.ir.graph import Node, Value
from graphopt.passes._broadcasts import (
    BINARY,
    UNARY,
    VARIADIC,
    expanded_shape,
    is_alone,
    unexpanded,
)
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

x, y, shape, indices = var("x"), var("y"), var("shape"), var("indices")


@rule(
    *(make(x) for make in UNARY),
    *(make(x, y) for make in BINARY),
    *(make(x, ...) for make in VARIADIC),
)
def compute_then_expand(rw: Rewriter, node: Node) -> Value | NoMatch | None:
    """Mul(Expand(x), c) -> Expand(Mul(x, c))"""
    operands, target = list(node.inputs), None
    for index, value in enumerate(operands):
        smaller = None if value is None else unexpanded(rw, value)
        if value is None or smaller is None:
            continue
        if not is_alone(value, node) and smaller.const is None:
            return NoMatch("the expanded value is also read elsewhere")
        operands[index] = smaller
        if value.shape == node.output.shape:
            target = expanded_shape(value)
    if target is None or target.content is None or node.output.shape is None:
        return None
    result = rw.insert(node.op_type, operands, dict(node.attrs)).output
    if result.shape is None or result.shape == node.output.shape:
        return None
    expanded = rw.op.Expand(result, target)
    return expanded if expanded.shape == node.output.shape else None


@rule(op.Gather(x, op.Expand(indices, shape).named("y"), axis=0))
def gather_then_expand(
    rw: Rewriter, x: Value, indices: Value, shape: Value, y: Value
) -> Value | NoMatch:
    """Gather(x, Expand(ids)) -> Expand(Gather(x, ids))"""
    if indices.rank is None or indices.rank != y.rank or x.rank is None:
        return NoMatch("the expansion adds axes")
    found = rw.op.Gather(x, indices)
    wanted = rw.op.Concat(shape, rw.ints(*[1] * (x.rank - 1)), axis=0) if x.rank > 1 else shape
    return rw.op.Expand(found, wanted)


@rule(op.Expand(x, shape))
def expanded_scalar_to_filled(rw: Rewriter, x: Value, shape: Value) -> Value | None:
    """Expand(number, shape) -> ConstantOfShape(shape)"""
    if x.const is None or x.const.size != 1 or x.rank or x.dtype == "string":
        return None
    if known_ints(shape.content) is not None:
        return None  # a constant, once folded
    return rw.insert("ConstantOfShape", [shape], {"value": x.const.reshape(1).copy()}).output


class SinkExpands(RewritePass):
    """Computes first and expands the result, where each element depends on one element only.

    Needs ops that are exact or correctly rounded, and expanded values that nobody else reads. Only
    ops whose result is exact or correctly rounded take part: kernels of others (Exp, Tanh, …) may
    give other bits at other places of a vector. A number expanded to a shape becomes
    ConstantOfShape. Expanded values that are read elsewhere too stay. Fidelity: exact.

    Before:
        (float[N,1,4] q, int64[3] s) => (float[N,20,4] y) <int64[3] r = {1, 20, 1}, float c = {2}> {
            t = Expand(q, r)
            u = Mul(t, c)
            y = Softmax(u)
        }

    After:
        (float[N,1,4] q, int64[3] s) => (float[N,20,4] y) <int64[3] r = {1, 20, 1}, float c = {2}> {
            t = Mul(q, c)
            u = Expand(t, r)
            y = Softmax(u)
        }
    """

    name = "sink-expands"
    fidelity = Fidelity.EXACT
    rules = (compute_then_expand, gather_then_expand, expanded_scalar_to_filled)
