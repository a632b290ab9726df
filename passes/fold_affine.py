"""Scales and shifts per channel folded into the linear layer that follows or precedes them."""

from __future__ import annotations

import math

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.passes._linear import is_per_column, rows_of, shifted_bias, written
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Pattern, Rewriter, const, op, rule, var

x, layer, inner = var("x"), var("layer"), var("inner")
w, b, c = const("w"), const("b"), const("c")


def _operands(pattern: Pattern) -> tuple[Pattern, ...]:
    """What a layer may read: `pattern` as it is, transposed or reshaped."""
    named = pattern.named("inner")
    return named, op.Transpose(named), op.Reshape(named, var("shape"))


def _move(layer: Node, inner: Value) -> Node | None:
    """The Transpose or Reshape between `inner` and the layer that reads it."""
    operand = layer.inputs[0]
    return None if operand is inner or operand is None else operand.producer


def _moved(rw: Rewriter, layer: Node, inner: Value, x: Value) -> Value:
    """`x` moved as `inner` is."""
    move = _move(layer, inner)
    if move is None:
        return x
    return rw.insert(move.op, [x, *move.inputs[1:]], dict(move.attrs)).output


def _per_column(constant: Value, width: int) -> np.ndarray | None:
    """A constant as one float64 number per column of a matrix, None if it is not that."""
    array = constant.const
    assert array is not None
    if array.size == 1:
        return np.full(width, array.reshape(()), np.float64)
    if array.size != width or array.shape[-1] != width:
        return None
    return array.reshape(-1).astype(np.float64)


def _columns_read(
    layer: Node, inner: Value, x: Value, constant: Value, width: int
) -> np.ndarray | None:
    """`constant`, which `inner` combines with `x`, as one number per column that `layer` reads."""
    array, dims = constant.const, inner.shape
    assert array is not None
    if x.type != inner.type or not dims:
        return None
    array = array.reshape((1,) * (len(dims) - array.ndim) + array.shape)
    move = _move(layer, inner)
    taken = 1  # last axes that are the columns
    if move is not None and move.op == "Transpose":
        perm = move.attr("perm") or list(range(len(dims)))[::-1]
        array, dims = array.transpose(perm), tuple(dims[axis] for axis in perm)
    elif move is not None:
        taken = next((k for k in range(1, len(dims) + 1) if math.prod(dims[-k:]) == width), 0)
    last = array.shape[-taken:]
    if not taken or array.size != math.prod(last):
        return None
    sizes = [width] if taken == 1 else [dim for dim in dims[-taken:] if isinstance(dim, int)]
    if len(sizes) < taken or any(had not in (1, size) for had, size in zip(last, sizes)):
        return None
    return np.broadcast_to(array.reshape(last).astype(np.float64), sizes).reshape(-1)


@rule(*(p for v in _operands(op.Mul(x, c)) for p in (op.MatMul(v, w), op.Gemm(v, w, ...))))
def scale_into_next(
    rw: Rewriter, x: Value, c: Value, inner: Value, w: Value, node: Node
) -> Value | NoMatch:
    """MatMul(x * c, w) -> MatMul(x, w'), w' having rows scaled by c; x * c may be moved first"""
    rows = rows_of(w, node)
    if isinstance(rows, NoMatch):
        return rows
    scale = _columns_read(node, inner, x, c, rows.shape[0])
    if scale is None:
        return NoMatch("the scale is not one number per column")
    weight = written(rw, rows * scale[:, None], node, w.const.dtype)  # type: ignore[union-attr]
    operands = [_moved(rw, node, inner, x), weight, *node.inputs[2:]]
    return rw.insert(node.op, operands, dict(node.attrs)).output


@rule(*(op.Gemm(v, w, ...) for v in _operands(op.Add(x, c))))
def shift_into_next(
    rw: Rewriter, x: Value, c: Value, inner: Value, w: Value, node: Node
) -> Value | NoMatch:
    """Gemm(x + c, w, b) -> Gemm(x, w, c w + b); x + c may be moved first"""
    rows, bias = rows_of(w, node), node.const(2)
    if isinstance(rows, NoMatch):
        return rows
    if not is_per_column(node.input(2)):
        return NoMatch("the bias is not a constant per column")
    shift = _columns_read(node, inner, x, c, rows.shape[0])
    if shift is None:
        return NoMatch("the shift is not one number per column")
    attrs = {name: attr for name, attr in node.attrs.items() if name != "beta"}
    value = shifted_bias(rw, node, bias, shift, rows)
    return rw.insert("Gemm", [_moved(rw, node, inner, x), w, value], attrs).output


@rule(*(op.Add(op.MatMul(v, w).named("layer"), b) for v in _operands(op.Add(x, c))))
def shift_into_bias(
    rw: Rewriter, x: Value, c: Value, inner: Value, w: Value, b: Value, layer: Value, node: Node
) -> Value | NoMatch:
    """MatMul(x + c, w) + b -> MatMul(x, w) + (c w + b); x + c may be moved first"""
    product = layer.producer
    assert product is not None and b.const is not None
    rows = rows_of(w, product)
    if isinstance(rows, NoMatch):
        return rows
    shift = _columns_read(product, inner, x, c, rows.shape[0])
    bias = _per_column(b, rows.shape[1])
    if shift is None or bias is None or node.output.type != layer.type:
        return NoMatch("the shift and the bias are not one number per column")
    total = (bias + shift @ rows.astype(np.float64)).astype(rows.dtype)
    return rw.op.Add(rw.op.MatMul(_moved(rw, product, inner, x), w), rw.const(total))


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
    costs nothing after this, nor does one that is transposed or reshaped before the layer reads it.
    The new weights are computed in float64 and rounded once. Fidelity: reassociates.

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
    rules = (scale_into_next, shift_into_next, shift_into_bias, scale_into_previous)
