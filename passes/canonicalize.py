"""Removes ops that do nothing and writes the rest in one form."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.ir.types import is_float
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, y, c, mask = var("x"), var("y"), const("c"), const("mask")


def _unless_broadcast(node: Node, x: Value) -> Value | NoMatch:
    """`x` as the result of an op that only could have broadcast it."""
    return x if node.output.type == x.type else NoMatch("the op broadcasts its operand")


def _holds(value: Value, element: float) -> bool:
    """True if every element has the bits of `element`: zeros count by their sign."""
    array = value.const
    assert array is not None
    if array.size == 0 or array.size > 1 << 20 or array.dtype.kind not in "biuf":
        return False
    same_sign = array.dtype.kind != "f" or bool(np.all(np.signbit(array) == np.signbit(element)))
    return same_sign and bool(np.all(array == element))


@rule(op.Identity(x), op.Sum(x), op.Min(x), op.Max(x), op.Mean(x), op.Concat(x))
def op_of_one_value(rw: Rewriter, x: Value) -> Value:
    """Identity(x), Sum(x), Concat(x), … -> x"""
    return x


@rule(op.Dropout(x, ...))
def dropout_to_nothing(rw: Rewriter, x: Value, node: Node) -> list[Value] | NoMatch:
    """Dropout(x) -> x, outside of training"""
    training = node.input(2)
    if training is not None and (training.const is None or training.const.any()):
        return NoMatch("it is, or may be, in training mode")
    if any(value.uses for value in node.outputs[1:]):
        return NoMatch("its mask is used")
    return [x] * len(node.outputs)


@rule(op.Mul(x, c), op.Div(x, c), op.Pow(x, c))
def times_one(rw: Rewriter, x: Value, c: Value, node: Node) -> Value | NoMatch:
    """x * 1, x / 1, x ** 1 -> x"""
    if not _holds(c, 1):
        return NoMatch("the constant is not 1")
    return _unless_broadcast(node, x)


@rule(op.Add(x, c), op.Sub(x, c))
def plus_zero(rw: Rewriter, x: Value, c: Value, node: Node) -> Value | NoMatch:
    """x + 0, x - 0 -> x, with the zero that keeps the sign of x = -0.0"""
    zero = -0.0 if node.op_type == "Add" and is_float(x.dtype) else 0.0
    if not _holds(c, zero):
        return NoMatch("the constant is not 0, or turns -0.0 into 0.0")
    return _unless_broadcast(node, x)


@rule(op.And(x, c), op.Or(x, c), op.Xor(x, c))
def logic_with_neutral(rw: Rewriter, x: Value, c: Value, node: Node) -> Value | NoMatch:
    """x and true, x or false, x xor false -> x"""
    if not _holds(c, node.op_type == "And"):
        return NoMatch("the constant changes something")
    return _unless_broadcast(node, x)


@rule(op.Not(op.Not(x).shared()), op.Neg(op.Neg(x).shared()))
def done_and_undone(rw: Rewriter, x: Value) -> Value:
    """Not(Not(x)), Neg(Neg(x)) -> x"""
    return x


@rule(op.Relu(op.Relu(x).named("y").shared()), op.Abs(op.Abs(x).named("y").shared()))
def done_twice(rw: Rewriter, y: Value) -> Value:
    """Relu(Relu(x)) -> Relu(x), Abs(Abs(x)) -> Abs(x)"""
    return y


@rule(op.Where(mask, x, y))
def where_known(rw: Rewriter, mask: Value, x: Value, y: Value, node: Node) -> Value | NoMatch:
    """Where(true, x, y) -> x, Where(false, x, y) -> y"""
    if not (_holds(mask, True) or _holds(mask, False)):
        return NoMatch("the condition varies")
    return _unless_broadcast(node, x if _holds(mask, True) else y)


@rule(op.Clip(op.Clip(x, const("inner_low"), const("inner_high")), const("low"), const("high")))
def clip_of_clip(
    rw: Rewriter, x: Value, inner_low: Value, inner_high: Value, low: Value, high: Value
) -> Value | NoMatch:
    """Clip(Clip(x, a, b), c, d) -> Clip(x, clip(a), clip(b)), by the outer bounds"""
    bounds = [value.const for value in (inner_low, inner_high, low, high)]
    a, b, c, d = (array.reshape(()) for array in bounds if array is not None)
    if not (a <= b and c <= d):
        return NoMatch("a lower bound lies above its upper bound")
    return rw.op.Clip(x, rw.const(np.clip(a, c, d)), rw.const(np.clip(b, c, d)))


class Canonicalize(RewritePass):
    """Removes ops that do nothing: identities, inference-time dropout, neutral elements.

    Needs nothing. An op goes only where what is left has the same dtype and shape, and the same
    bits: `x + 0.0` stays, because it turns -0.0 into 0.0. Fidelity: exact.

    Before:
        (float[N,4] x) => (float[N,4] y) <float one = {1}> {
            a = Identity(x)
            c = Mul(a, one)
            y = Relu(c)
        }

    After:
        (float[N,4] x) => (float[N,4] y) {
            y = Relu(x)
        }
    """

    name = "canonicalize"
    fidelity = Fidelity.EXACT
    rules = (
        op_of_one_value,
        dropout_to_nothing,
        times_one,
        plus_zero,
        logic_with_neutral,
        done_and_undone,
        done_twice,
        where_known,
        clip_of_clip,
    )
