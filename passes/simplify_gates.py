"""Activations that mix a value with a scaled copy of itself, with fewer ops."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Value
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

_LEAST = 0.1
"""Dividing by what is nearer to 0 would lose digits of the sum."""

x, p, slope, one = var("x"), var("p"), const("slope"), const("one")

_kept = op.Mul(p, x)
_rest = op.Sub(one, p)


@rule(
    op.Add(_kept, op.Mul(op.Mul(slope, _rest), x)),
    op.Add(_kept, op.Mul(slope, op.Mul(_rest, x))),
    op.Add(_kept, op.Mul(_rest, op.Mul(slope, x))),
)
def dice_to_product(rw: Rewriter, x: Value, p: Value, slope: Value, one: Value) -> Value | NoMatch:
    """p * x + slope * (1 - p) * x -> x * (p + slope / (1 - slope)) * (1 - slope)"""
    assert one.const is not None and slope.const is not None
    if one.const.size != 1 or one.const.item() != 1 or (slope.rank or 0) > (x.rank or 0):
        return NoMatch("the shares of both do not add up to 1")
    kept, dtype = slope.const.astype(np.float64), slope.const.dtype
    rest = rw.const((1 - kept).astype(dtype))
    if np.abs(1 - kept).min(initial=1) < _LEAST:
        return rw.op.Mul(x, rw.op.Add(rw.op.Mul(p, rest), slope))
    return rw.op.Mul(rw.op.Mul(x, rw.op.Add(p, rw.const((kept / (1 - kept)).astype(dtype)))), rest)


class SimplifyGates(RewritePass):
    """Computes activations that choose between a value and a scaled copy of it with fewer ops.

    Needs shares of the value and of its copy that add up to 1. So DIN's Dice: `p` is the sigmoid of
    the normalized value, and says how much of it passes. (Zhou et al., "Deep Interest Network for
    Click-Through Rate Prediction", 2018.) The last factor often goes into the weights of the next
    layer. Fidelity: reassociates.

    Before:
        (float[N,8] x, float[N,8] p) => (float[N,8] y) <float[8] slope, float one = {1}> {
            a = Mul(p, x)
            q = Sub(one, p)
            s = Mul(slope, q)
            b = Mul(s, x)
            y = Add(a, b)
        }

    After:
        (float[N,8] x, float[N,8] p) => (float[N,8] y) <float[8] ratio, float[8] rest> {
            s = Add(p, ratio)
            m = Mul(x, s)
            y = Mul(m, rest)
        }
    """

    name = "simplify-gates"
    fidelity = Fidelity.REASSOCIATES
    rules = (dice_to_product,)
