"""Inference-time BatchNormalization folded into the linear op before it."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.ir.types import dtype_to_numpy
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, linear = var("x"), var("linear")
w, b = const("w"), const("b")
_STATISTICS = const("scale"), const("shift"), const("mean"), const("variance")


def _factor_and_offset(node: Node) -> tuple[np.ndarray, np.ndarray] | NoMatch:
    """`(f, o)` in float64 such that the op computes `x * f + o` per channel."""
    if node.attr("training_mode") or len(node.outputs) > 1:
        return NoMatch("it is in training mode")
    arrays = [node.const(k) for k in range(1, 5)]
    scale, shift, mean, variance = (a.astype(np.float64) for a in arrays if a is not None)
    factor = scale / np.sqrt(variance + node.attr("epsilon"))
    return factor, shift - mean * factor


def _bias(value: Value | None, factor: np.ndarray) -> np.ndarray | None:
    """A bias as one number per channel, None if it is not that."""
    if value is None:
        return np.zeros_like(factor)
    if value.const is None or value.const.size not in (1, factor.size):
        return None
    per_channel = value.const.size == 1 or value.const.shape[-1] == factor.size
    return value.const.reshape(-1).astype(np.float64) if per_channel else None


@rule(op.BatchNormalization(op.Gemm(x, w, ...).named("linear"), *_STATISTICS))
def gemm_batch_norm_to_gemm(
    rw: Rewriter, x: Value, w: Value, linear: Value, node: Node
) -> Value | NoMatch:
    """BatchNormalization(Gemm(x, w, b)) -> Gemm(x, w', b')"""
    folded, gemm = _factor_and_offset(node), linear.producer
    if isinstance(folded, NoMatch):
        return folded
    factor, offset = folded
    assert gemm is not None and w.const is not None
    bias = _bias(gemm.input(2), factor)
    if bias is None:
        return NoMatch("the bias is not a constant per channel")
    columns = factor[:, None] if gemm.attr("transB") else factor
    weight = rw.const((w.const * columns).astype(w.const.dtype))
    shift = rw.const((bias * gemm.attr("beta") * factor + offset).astype(w.const.dtype))
    kept = {name: attr for name, attr in gemm.attrs.items() if name != "beta"}
    return rw.insert("Gemm", [x, weight, shift], kept).output


@rule(
    op.BatchNormalization(op.MatMul(x, w).named("linear"), *_STATISTICS),
    op.BatchNormalization(op.Add(op.MatMul(x, w), b).named("linear"), *_STATISTICS),
)
def matmul_batch_norm_to_matmul(
    rw: Rewriter, x: Value, w: Value, linear: Value, node: Node
) -> Value | NoMatch:
    """BatchNormalization(MatMul(x, w) + b) -> MatMul(x, w') + b'"""
    folded = _factor_and_offset(node)
    if isinstance(folded, NoMatch):
        return folded
    factor, offset = folded
    assert linear.producer is not None and w.const is not None
    if linear.rank != 2 or w.rank != 2:
        return NoMatch("the channels are not the columns of the product")
    added = linear.producer.op == "Add"
    operands = [v for v in linear.producer.inputs if v is not None and v.const is not None]
    bias = _bias(operands[0] if added else None, factor)
    if bias is None:
        return NoMatch("the bias is not a constant per channel")
    product = rw.op.MatMul(x, rw.const((w.const * factor).astype(w.const.dtype)))
    return rw.op.Add(product, rw.const((bias * factor + offset).astype(w.const.dtype)))


@rule(op.BatchNormalization(op.Conv(x, w, ...).named("linear"), *_STATISTICS))
def conv_batch_norm_to_conv(
    rw: Rewriter, x: Value, w: Value, linear: Value, node: Node
) -> Value | NoMatch:
    """BatchNormalization(Conv(x, w, b)) -> Conv(x, w', b')"""
    folded, conv = _factor_and_offset(node), linear.producer
    if isinstance(folded, NoMatch):
        return folded
    factor, offset = folded
    assert conv is not None and w.const is not None
    bias = _bias(conv.input(2), factor)
    if bias is None:
        return NoMatch("the bias is not a constant")
    channels = factor.reshape((-1,) + (1,) * (w.const.ndim - 1))
    weight = rw.const((w.const * channels).astype(w.const.dtype))
    shift = rw.const((bias * factor + offset).astype(w.const.dtype))
    return rw.insert("Conv", [x, weight, shift], dict(conv.attrs)).output


@rule(op.BatchNormalization(x, *_STATISTICS))
def batch_norm_to_mul_add(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch:
    """BatchNormalization(x) -> x * f + o"""
    folded = _factor_and_offset(node)
    if isinstance(folded, NoMatch):
        return folded
    if x.rank is None:
        return NoMatch("the rank is not known")
    shape = (-1,) + (1,) * max(0, x.rank - 2)
    dtype = dtype_to_numpy(x.dtype)
    factor, offset = (rw.const(array.reshape(shape).astype(dtype)) for array in folded)
    return rw.op.Add(rw.op.Mul(x, factor), offset)


class FoldBatchNorm(RewritePass):
    """Folds BatchNormalization into the weights of the Gemm, MatMul or Conv before it.

    Needs inference mode and constants per channel. Where there is no such layer, or others read its
    result too, a Mul and an Add per channel remain. The new weights are computed in float64 and
    rounded once. Fidelity: reassociates.

    Before:
        (float[N,4] x) => (float[N,8] y)
        <float[4,8] w, float[8] b, float[8] scale, float[8] shift, float[8] mean, float[8] var> {
            h = Gemm(x, w, b)
            n = BatchNormalization(h, scale, shift, mean, var)
            y = Relu(n)
        }

    After:
        (float[N,4] x) => (float[N,8] y) <float[4,8] w2, float[8] b2> {
            n = Gemm(x, w2, b2)
            y = Relu(n)
        }
    """

    name = "fold-batch-norm"
    fidelity = Fidelity.REASSOCIATES
    rules = (
        gemm_batch_norm_to_gemm,
        matmul_batch_norm_to_matmul,
        conv_batch_norm_to_conv,
        batch_norm_to_mul_add,
    )
