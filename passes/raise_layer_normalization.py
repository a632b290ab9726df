"""Layer normalization written out, as one op."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Value
from graphopt.passes._shapes import ints_of
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, mean, variance = var("x"), var("mean"), var("variance")
axes, two, epsilon, g, normal = const("axes"), const("two"), const("epsilon"), const("g"), var("n")

_centred = op.Sub(x, op.ReduceMean(x, axes, keepdims=1).named("mean"))
_squares = (op.Pow(_centred, two), op.Mul(_centred, _centred))
_deviations = tuple(
    op.Sqrt(op.Add(op.ReduceMean(square, axes, keepdims=1).named("variance"), epsilon))
    for square in _squares
)


def _last_axis(axes: Value, x: Value) -> bool:
    return ints_of(axes) in ([-1], [(x.rank or 0) - 1])


@rule(
    *(op.Div(_centred, deviation) for deviation in _deviations),
    *(op.Mul(_centred, op.Reciprocal(deviation)) for deviation in _deviations),
)
def normalized_to_op(
    rw: Rewriter, x: Value, mean: Value, variance: Value, epsilon: Value
) -> Value | NoMatch:
    """(x - mean) / Sqrt(mean of (x - mean) ** 2 + epsilon) -> LayerNormalization(x, 1)"""
    width = x.tensor.dims[-1] if x.rank else None
    if not isinstance(width, int) or x.dtype != "float32":
        return NoMatch("not float32 of a known width")
    assert mean.producer is not None and variance.producer is not None
    square = variance.producer.operands[0].producer
    assert square is not None
    exponent = square.const(1)
    if square.op == "Pow" and (exponent is None or exponent.size != 1 or exponent.item() != 2):
        return NoMatch("it is another power than the square")
    for node in (mean.producer, variance.producer):
        if node.inputs[1] is None or not _last_axis(node.inputs[1], x):
            return NoMatch("it normalizes another axis than the last")
    assert epsilon.const is not None
    if epsilon.const.size != 1:
        return NoMatch("epsilon is no number")
    ones = rw.const(np.ones(width, np.float32))
    return rw.op.LayerNormalization(x, ones, epsilon=float(epsilon.const.item()))


def _row(value: Value, width: object) -> np.ndarray | None:
    """A constant as one number per column, None if it is not that."""
    array = value.const
    assert array is not None
    if array.size == width and array.shape[-1] == width:
        return array.reshape(-1)
    return np.full(width, array.item(), array.dtype) if array.size == 1 else None  # type: ignore


@rule(op.Mul(op.LayerNormalization(x, const("scale")).named("n"), g))
def scale_to_op(rw: Rewriter, n: Value, x: Value, g: Value, scale: Value) -> Value | NoMatch:
    """LayerNormalization(x, s) * g -> LayerNormalization(x, s * g)"""
    row = _row(g, n.tensor.dims[-1])
    assert n.producer is not None and scale.const is not None
    if row is None or (g.rank or 0) > (n.rank or 0) or scale.const.ndim != 1:
        return NoMatch("it is not scaled by one number per column")
    return rw.op.LayerNormalization(x, rw.const(scale.const * row), **n.producer.attrs)


@rule(op.Add(op.LayerNormalization(x, const("scale")).named("n"), g))
def shift_to_op(rw: Rewriter, n: Value, x: Value, g: Value, scale: Value) -> Value | NoMatch:
    """LayerNormalization(x, s) + b -> LayerNormalization(x, s, b)"""
    row = _row(g, n.tensor.dims[-1])
    assert n.producer is not None and scale.const is not None
    if row is None or (g.rank or 0) > (n.rank or 0) or scale.const.ndim != 1:
        return NoMatch("it is not shifted by one number per column")
    return rw.op.LayerNormalization(x, scale, rw.const(row), **n.producer.attrs)


class RaiseLayerNormalization(RewritePass):
    """Replaces layer normalization written out in elementary ops by LayerNormalization.

    Needs float32, normalized over a last axis of known size. Exports of opset 16 and before have no
    other way. Fidelity: reassociates.

    Before:
        (float[N,8] x) => (float[N,8] y) <int64[1] axis = {-1}, float two = {2}, float e = {0.001},
         float[8] g, float[8] b> {
            m = ReduceMean(x, axis)
            d = Sub(x, m)
            s = Pow(d, two)
            v = ReduceMean(s, axis)
            w = Add(v, e)
            r = Sqrt(w)
            n = Div(d, r)
            h = Mul(n, g)
            y = Add(h, b)
        }

    After:
        (float[N,8] x) => (float[N,8] y) <float[8] g, float[8] b> {
            y = LayerNormalization<epsilon=0.001>(x, g, b)
        }
    """

    name = "raise-layer-normalization"
    fidelity = Fidelity.REASSOCIATES
    rules = (normalized_to_op, scale_to_op, shift_to_op)
