"""Gemms between reshapes that only merge and part rows, as matrix products over more axes."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.passes._linear import is_per_column, turned
from graphopt.passes._shapes import reshaped
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, layer, w = var("x"), var("layer"), const("w")


@rule(
    op.Reshape(op.Gemm(op.Reshape(x, ...), w).named("layer"), ...),
    op.Reshape(op.Gemm(op.Reshape(x, ...), w, const("b")).named("layer"), ...),
)
def gemm_between_reshapes(
    rw: Rewriter, x: Value, w: Value, layer: Value, node: Node
) -> Value | NoMatch:
    """Reshape(Gemm(Reshape(x), w, b)) -> Add(MatMul(x, w), b)"""
    gemm, result = layer.producer, node.output.tensor
    assert gemm is not None and w.const is not None
    if gemm.attr("transA") or gemm.attr("alpha") != 1.0 or gemm.attr("beta") != 1.0:
        return NoMatch("its operand is transposed, or it is scaled")
    weight = turned(gemm, w.const)
    if x.shape is None or len(result.dims) < 3 or result.dims[-1] != weight.shape[1]:
        return NoMatch("its result is not reshaped to rows of more axes")
    bias = gemm.const(2)
    if not is_per_column(gemm.input(2)):
        return NoMatch("its bias differs from row to row")
    rows = reshaped(rw, x, (*result.dims[:-1], weight.shape[0]))
    if isinstance(rows, NoMatch):
        return rows
    product = rw.op.MatMul(rows, w if weight is w.const else rw.const(np.ascontiguousarray(weight)))
    return product if bias is None else rw.op.Add(product, rw.const(bias.reshape(-1)))


class UnflattenGemms(RewritePass):
    """Lets a layer work on rows of several axes, instead of merging and splitting the axes.

    Needs a result that is reshaped to rows of more axes. What is done to one axis (a selection, a
    transpose) can then be followed through the layer. Fidelity: reassociates.

    Before:
        (float[N,5,4] x) => (float[N,5,8] y)
        <float[4,8] w, float[8] b, int64[2] flat = {-1, 4}, int64[3] rows = {-1, 5, 8}> {
            r = Reshape(x, flat)
            h = Gemm(r, w, b)
            y = Reshape(h, rows)
        }

    After:
        (float[N,5,4] x) => (float[N,5,8] y) <float[4,8] w, float[8] b> {
            h = MatMul(x, w)
            y = Add(h, b)
        }
    """

    name = "unflatten-gemms"
    fidelity = Fidelity.REASSOCIATES
    rules = (gemm_between_reshapes,)
