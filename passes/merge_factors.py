"""Two layers with nothing between them, as one."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.ir.types import is_float
from graphopt.passes._linear import is_per_column, rows_of
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, a, b, inner = var("x"), const("a"), const("b"), var("inner")


@rule(
    op.MatMul(op.MatMul(x, a).named("inner"), b),
    op.MatMul(op.Gemm(x, a, ...).named("inner"), b),
    op.Gemm(op.MatMul(x, a).named("inner"), b, ...),
    op.Gemm(op.Gemm(x, a, ...).named("inner"), b, ...),
)
def two_layers_to_one(
    rw: Rewriter, x: Value, a: Value, b: Value, inner: Value, node: Node
) -> Value | NoMatch:
    """(x a + c) b + d -> x (a b) + (c b + d)"""
    first = inner.producer
    assert first is not None
    left, right = rows_of(a, first), rows_of(b, node)
    if isinstance(left, NoMatch):
        return left
    if isinstance(right, NoMatch):
        return right
    between, outputs = right.shape
    if left.shape[0] * outputs > between * (left.shape[0] + outputs):
        return NoMatch("as two layers they take fewer products")
    if not (is_per_column(first.input(2)) and is_per_column(node.input(2))):
        return NoMatch("a bias is not a constant per column")
    outer = right.astype(np.float64) * node.attr("alpha", 1.0)
    if not is_float(x.dtype) or not (np.isfinite(left).all() and np.isfinite(right).all()):
        return NoMatch("a weight is not all numbers")
    with np.errstate(over="ignore"):
        product = (left.astype(np.float64) * first.attr("alpha", 1.0) @ outer).astype(left.dtype)
    if not np.isfinite(product).all():
        return NoMatch("the product of the weights is too large for their dtype")
    bias = _bias(first, between) @ outer + _bias(node, outputs)
    matrix = rw.const(product)
    if node.op == "MatMul" and not bias.any():
        return rw.op.MatMul(x, matrix)
    return rw.op.Gemm(x, matrix, rw.const(bias.astype(left.dtype)))


def _bias(layer: Node, columns: int) -> np.ndarray:
    """What a Gemm adds to each column; zeros for a MatMul."""
    bias = layer.const(2)
    if bias is None:
        return np.zeros(columns)
    scaled = layer.attr("beta", 1.0) * bias.astype(np.float64).reshape(-1)
    return np.broadcast_to(scaled, (columns,))


class MergeFactors(RewritePass):
    """Multiplies the weights of two layers, one right after the other, where that saves products.

    Needs constant weights, and nothing between the layers that is read elsewhere. Factors of low
    rank stay factors. Fidelity: reassociates.

    Before:
        (float[N,4] x) => (float[N,3] y)
        <float[4,8] a, float[8] c, float[8,3] b, float[3] d> {
            u = Gemm(x, a, c)
            y = Gemm(u, b, d)
        }

    After:
        (float[N,4] x) => (float[N,3] y) <float[4,3] a, float[3] d> {
            y = Gemm(x, a, d)
        }
    """

    name = "merge-factors"
    fidelity = Fidelity.REASSOCIATES
    rules = (two_layers_to_one,)
