"""Weights that a model stores in few bits, in full precision for kernels that want them so."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule

w = const("w")


@rule(op.DequantizeLinear(w, ...), op.Cast(w))
def dequantize_to_weights(rw: Rewriter, node: Node, w: Value) -> Value | NoMatch:
    """DequantizeLinear(w, scale) -> the weights in full"""
    if w.const is None or w.const.size < 2 or node.output.dtype != "float32":
        return NoMatch("these are no float32 weights")
    if any(user.op == "Gather" for user in node.output.users):
        return NoMatch("rows of it are looked up, and a table stays small")
    if node.op == "Cast":
        return rw.const(w.const.astype(np.float32))
    others = [node.const(k) for k in range(1, len(node.inputs))]
    if any(array is None or array.ndim > 1 for array in others):
        return NoMatch("its scale is not one constant per slice")
    shape = [1] * w.const.ndim
    shape[node.attr("axis") % w.const.ndim] = -1
    scale, *zero = (array.reshape(shape if array.size > 1 else ()) for array in others)  # type: ignore
    codes = w.const.astype(np.int32) - (zero[0].astype(np.int32) if zero else 0)
    return rw.const(codes.astype(np.float32) * scale)
