"""Convolutions whose windows overlap, as products of matrices."""

from __future__ import annotations

from graphopt.ir.graph import Node, Value
from graphopt.passes._convolutions import convolution_as_product
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, w = var("x"), const("w")


@rule(op.Conv(x, w, ...))
def convolution_to_product(rw: Rewriter, node: Node) -> Value | NoMatch:
    """Conv(x, w, b) -> MatMul(the positions of each window side by side, w) + b"""
    return convolution_as_product(rw, node, join=True)


class JoinWindows(RewritePass):
    """Computes a convolution along one axis as a product of the positions of each window.

    For targets that have no better kernel for it, as joining copies each position into every window
    that it is in. Needs what `unroll-convolutions` needs, but for the size. Fidelity: reassociates.

    Before:
        (float[N,4,9] x) => (float[N,8,8] y) <float[8,4,2] w> {
            y = Conv(x, w)
        }

    After:
        (float[N,4,9] x) => (float[N,8,8] y)
        <float[8,8] v, int64[8,2] p = {0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8},
         int64[3] s = {-1, 8, 8}> {
            t = Transpose<perm=[0, 2, 1]>(x)
            a = Gather<axis=1>(t, p)
            c = Reshape(a, s)
            h = MatMul(c, v)
            y = Transpose<perm=[0, 2, 1]>(h)
        }
    """

    name = "join-windows"
    fidelity = Fidelity.REASSOCIATES
    rules = (convolution_to_product,)
