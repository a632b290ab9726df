"""Scales and shifts per channel folded into the linear layer that follows or precedes them."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.passes._linear import is_per_column, rows_of, shifted_bias, written
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, layer = var("x"), var("layer")
w, b, c = const("w"), const("b"), const("c")


def _per_column(constant: Value, width: int) -> np.ndarray | None:
    """A constant as one float64 number per column of a matrix, None if it is not that."""
    array = constant.const
    assert array is not None
    if array.size == 1:
        return np.full(width, array.reshape(()), np.float64)
    if array.size != width or array.shape[-1] != width:
        return None
    return array.reshape(-1).astype(np.float64)


@rule(op.MatMul(op.Mul(x, c), w), op.Gemm(op.Mul(x, c), w, ...))
def scale_into_next(rw: Rewriter, x: Value, c: Value, w: Value, node: Node) -> Value | NoMatch:
    """MatMul(x * c, w) -> MatMul(x, w'), w' having rows scaled by c"""
    rows = rows_of(w, node)
    if isinstance(rows, NoMatch):
        return rows
    scale = _per_column(c, rows.shape[0])
    if scale is None or x.type != node.inputs[0].type:  # type: ignore[union-attr]
        return NoMatch("the scale is not one number per column")
    weight = written(rw, rows * scale[:, None], node, w.const.dtype)  # type: ignore[union-attr]
    return rw.insert(node.op, [x, weight, *node.inputs[2:]], dict(node.attrs)).output


@rule(op.Gemm(op.Add(x, c), w, ...))
def shift_into_next(rw: Rewriter, x: Value, c: Value, w: Value, node: Node) -> Value | NoMatch:
    """Gemm(x + c, w, b) -> Gemm(x, w, c w + b)"""
    rows, bias = rows_of(w, node), node.const(2)
    if isinstance(rows, NoMatch):
        return rows
    if not is_per_column(node.input(2)):
        return NoMatch("the bias is not a constant per column")
    shift = _per_column(c, rows.shape[0])
    if shift is None or x.type != node.inputs[0].type:  # type: ignore[union-attr]
        return NoMatch("the shift is not one number per column")
    attrs = {name: attr for name, attr in node.attrs.items() if name != "beta"}
    value = shifted_bias(rw, node, bias, shift, rows)
    return rw.insert("Gemm", [x, w, value], attrs).output


@rule(op.Mul(op.MatMul(x, w).named("layer"), c), op.Mul(op.Gemm(x, w, ...).named("layer"), c))
def scale_into_previous(
    rw: Rewriter, x: Value, w: Value, c: Value, layer: Value, node: Node
) -> Value | NoMatch:
    """MatMul(x, w) * c -> MatMul(x, w'), w' having columns scaled by c"""
    linear = layer.producer
    assert linear is not None
    rows, bias = rows_of(w, linear), linear.const(2)
    if isinstance(rows, NoMatch):
        return rows
    scale = _per_column(c, rows.shape[1])
    if scale is None or node.output.type != layer.type:
        return NoMatch("the scale is not one number per column")
    if not is_per_column(linear.input(2)):
        return NoMatch("the bias is not a constant per column")
    operands = [x, written(rw, rows * scale, linear, rows.dtype)]
    if bias is not None:
        operands.append(rw.const((bias.reshape(-1) * scale).astype(bias.dtype)))
    return rw.insert(linear.op, operands, dict(linear.attrs)).output


class FoldAffine(RewritePass):
    """Folds multiplications and additions per column into the weights of the layer next to them.

    Needs a constant per column next to a Gemm or MatMul with constant weights. What
    BatchNormalization leaves behind where no layer precedes it, or a scale on embeddings or logits,
    costs nothing after this. The new weights are computed in float64 and rounded once. Fidelity:
    reassociates.

    Before:
        (float[N,4] x) => (float[N,8] y) <float[4] f, float[4] o, float[4,8] w, float[8] b> {
            u = Mul(x, f)
            v = Add(u, o)
            y = Gemm(v, w, b)
        }

    After:
        (float[N,4] x) => (float[N,8] y) <float[4,8] w, float[8] b> {
            y = Gemm(x, w, b)
        }
    """

    name = "fold-affine"
    fidelity = Fidelity.REASSOCIATES
    rules = (scale_into_next, shift_into_next, scale_into_previous)
