"""Sums before a LayerNormalization, written so that ONNX Runtime leaves the two apart."""

from __future__ import annotations

from graphopt.ir.graph import Node, Value
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

x, y = var("x"), var("y")


@rule(op.Add(x, y))
def sum_before_normalization(rw: Rewriter, x: Value, y: Value, node: Node) -> Value | NoMatch:
    """LayerNormalization(x + y) -> LayerNormalization(Sum(x, y))"""
    if not any(isinstance(u.user, Node) and _normalizes(u.user, node) for u in node.output.uses):
        return NoMatch("it is not normalized")
    if x.const is not None or y.const is not None:
        return NoMatch("it adds a constant")
    return rw.op.Sum(x, y)


def _normalizes(user: Node, node: Node) -> bool:
    return user.op == "LayerNormalization" and user.inputs[0] is node.output


class PartLayerNorms(RewritePass):
    """Writes the sum before a layer normalization as Sum, not as Add (for ONNX Runtime).

    ONNX Runtime makes one op of an Add and the LayerNormalization after it, which takes 2 to 5
    times as long as the two. Needs operands that are both computed. Fidelity: exact.

    Before:
        (float[N,5,4] x, float[N,5,4] r) => (float[N,5,4] y) <float[4] w> {
            s = Add(x, r)
            y = LayerNormalization(s, w)
        }

    After:
        (float[N,5,4] x, float[N,5,4] r) => (float[N,5,4] y) <float[4] w> {
            s = Sum(x, r)
            y = LayerNormalization(s, w)
        }
    """

    name = "part-layer-norms"
    fidelity = Fidelity.EXACT
    rules = (sum_before_normalization,)
