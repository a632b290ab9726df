"""Layers that are written with their weights first and their samples as columns."""

from __future__ import annotations

from graphopt.ir.graph import Node, Value
from graphopt.ir.types import is_float
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

w, x = const("w"), var("x")


@rule(op.Gemm(w, x, ...))
def weights_last(rw: Rewriter, w: Value, x: Value, node: Node) -> Value | NoMatch | None:
    """Gemm<transB=1>(w, x) -> Transpose(Gemm<transB=1>(x, w))"""
    bias = node.input(2)
    if x.const is not None or not is_float(x.dtype):
        return None
    if not node.attr("transB"):
        return NoMatch("its samples are columns to begin with")
    inputs = [x, w]
    if bias is not None:
        if bias.const is None or bias.const.shape[1:] not in ((), (1,)):
            return NoMatch("what it adds is not one number for each row of weights")
        if bias.const.ndim == 1 and bias.const.size != 1:
            return NoMatch("what it adds differs from sample to sample")
        inputs.append(rw.const(bias.const.reshape(-1)))
    attrs = {**node.attrs, "transA": 0, "transB": 1 - node.attr("transA", 0)}
    turned = rw.insert("Gemm", inputs, attrs).output
    return rw.op.Transpose(turned, perm=[1, 0])


@rule(op.MatMul(w, op.Transpose(x)))
def product_of_turned(rw: Rewriter, w: Value, x: Value, node: Node) -> Value | None:
    """MatMul(w, Transpose(x)) -> Transpose(Gemm<transB=1>(x, w))"""
    if (w.rank, x.rank) != (2, 2) or x.const is not None or not is_float(x.dtype):
        return None
    turned = rw.insert("Gemm", [x, w], {"transB": 1}).output
    return rw.op.Transpose(turned, perm=[1, 0])


class TurnLayers(RewritePass):
    """Computes layers written as W x, with samples as columns, as x W, with samples as rows.

    As TensorFlow has products of weights and column vectors (the cross network of DCN-Mix). A
    kernel packs weights that come last, and `cancel-transposes` has the transposes go where what
    follows turns the result back. Needs constant weights of two axes and samples that are rows, or
    a transpose of such. Fidelity: reassociates.

    Before:
        (float[N,4] x) => (float[8,N] y) <float[8,4] w> {
            y = Gemm<transB=1>(w, x)
        }

    After:
        (float[N,4] x) => (float[8,N] y) <float[8,4] w> {
            h = Gemm<transB=1>(x, w)
            y = Transpose<perm=[1, 0]>(h)
        }
    """

    name = "turn-layers"
    fidelity = Fidelity.REASSOCIATES
    rules = (weights_last, product_of_turned)
