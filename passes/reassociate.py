"""Constants of chained additions and multiplications brought together."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.ir.types import is_float
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, c, d, inner = var("x"), const("c"), const("d"), var("inner")


@rule(op.Add(x, c), op.Sub(x, c))
def plus_any_zero(rw: Rewriter, x: Value, c: Value, node: Node) -> Value | NoMatch | None:
    """x + 0.0 -> x, which may leave -0.0 where there was 0.0"""
    assert c.const is not None
    if not is_float(x.dtype) or c.const.size > 1 << 20 or np.any(c.const != 0):
        return None
    return x if node.output.type == x.type else NoMatch("it broadcasts its operand")


@rule(
    op.Add(op.Add(x, c).named("inner"), d),
    op.Mul(op.Mul(x, c).named("inner"), d),
)
def two_constants_to_one(
    rw: Rewriter, x: Value, c: Value, d: Value, inner: Value, node: Node
) -> Value | NoMatch | None:
    """x + c + d -> x + (c + d), x * c * d -> x * (c * d)"""
    assert c.const is not None and d.const is not None
    if not is_float(x.dtype) or x.const is not None:
        return None
    with np.errstate(over="ignore", under="ignore"):
        combined = np.add(c.const, d.const) if node.op == "Add" else np.multiply(c.const, d.const)
    if combined.nbytes > max(c.const.nbytes, d.const.nbytes):
        return NoMatch("together the constants are larger than each")
    small = np.abs(combined) < np.finfo(combined.dtype).tiny
    lost = small & (c.const != 0) & (d.const != 0) if node.op == "Mul" else False
    if not np.all(np.isfinite(combined)) or np.any(lost):
        return NoMatch("the combined constant leaves the range of normal numbers")
    return rw.insert(node.op, [x, rw.const(combined)]).output


class Reassociate(RewritePass):
    """Combines the constants of chained additions, and those of chained multiplications.

    Needs float constants, which together stay normal numbers and are no larger. Additions of 0.0 go
    altogether. Integers are left to exact passes. A constant is not made larger, nor infinite or
    subnormal. Fidelity: reassociates.

    Before:
        (float[N,4] x) => (float[N,4] y) <float[4] b, float half = {0.5}, float[4] w> {
            a = Add(x, b)
            c = Add(a, half)
            d = Mul(half, c)
            y = Mul(d, w)
        }

    After:
        (float[N,4] x) => (float[N,4] y) <float[4] b, float[4] w> {
            c = Add(x, b)
            y = Mul(c, w)
        }
    """

    name = "reassociate"
    fidelity = Fidelity.REASSOCIATES
    rules = (plus_any_zero, two_constants_to_one)
