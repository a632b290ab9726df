"""Weights that a model stores in few bits: dense layers read them so, other ops in full."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Attr, Node, Value
from graphopt.ops.stored_weights import DOMAIN as GRAPHOPT
from graphopt.ops.stored_weights import OP_TYPE
from graphopt.ops.stored_weights import restored as stored_weights
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.rewrite.pattern import Pattern
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.kernels.dot import MOST_COLUMNS

x, w, c = var("x"), const("w"), const("c")
restored = op.DequantizeLinear(w, ...)
shared = restored.shared()


@dataclass(frozen=True)
class ColumnCodes:
    """A matrix int8[K, N], and a float32 scale for each of its columns."""

    codes: np.ndarray
    scale: np.ndarray

    @staticmethod
    def of(value: Value, *, transposed: bool) -> ColumnCodes | None:
        """Of a matrix that a DequantizeLinear restores; None if its codes are not of this form."""
        restore = value.producer
        if restore is None or restore.op != "DequantizeLinear" or value.dtype != "float32":
            return None
        stored, scale = restore.const(0), restore.const(1)
        if stored is None or scale is None or stored.ndim != 2 or stored.dtype.itemsize != 1:
            return None
        column_axis = 0 if transposed else 1
        if scale.size > 1 and (scale.ndim != 1 or restore.attr("axis") % 2 != column_axis):
            return None
        zero = restore.const(2) if restore.input(2) is not None else np.zeros((), np.int32)
        if zero is None or zero.size not in (1, scale.size):
            return None
        codes = stored.astype(np.int32).T if transposed else stored.astype(np.int32)
        codes = codes - zero.reshape(-1).astype(np.int32)
        if codes.size and (codes.min() < -128 or codes.max() > 127):
            return None
        row = np.broadcast_to(scale.reshape(-1), (codes.shape[1],))
        return ColumnCodes(codes.astype(np.int8), row.astype(np.float32))


def bias_row(bias: np.ndarray | None, columns: int) -> np.ndarray | None:
    """A bias as float32[columns]; None if it is not one number per column."""
    if bias is None or bias.size not in (1, columns):
        return None
    if bias.size > 1 and bias.shape[-1] != columns:
        return None
    return np.broadcast_to(bias.reshape(-1), (columns,)).astype(np.float32)


@rule(Pattern(OP_TYPE, (w, c), domain=GRAPHOPT))
def stored_to_dequantized(rw: Rewriter, node: Node, w: Value, c: Value) -> Value | NoMatch:
    """StoredWeights(w, s) -> DequantizeLinear(w, s), or the weights in full if they have 4 bits"""
    if node.attr("bits", 8) == 8 and c.dtype == "float32":
        return rw.op.DequantizeLinear(w, c, axis=node.attrs["axis"])
    weights = stored_weights(node)
    assert weights is not None
    return rw.const(weights)


@rule(op.MatMul(x, shared), op.Gemm(x, shared), op.Gemm(x, shared, c))
def dequantized_to_dense(rw: Rewriter, node: Node, x: Value) -> Value | NoMatch:
    """Gemm(x, DequantizeLinear(w, s), c) -> Dense(x, w, c; scale=s)"""
    columns = node.output.tensor.dims[-1]
    if isinstance(columns, int) and columns <= MOST_COLUMNS:
        return NoMatch("weights of so few columns are as fast in full")
    return dense_of(rw, node, x, {})


def dense_of(rw: Rewriter, layer: Node, data: Value, attrs: dict[str, Attr]) -> Value | NoMatch:
    """A Gemm or MatMul of 8-bit weights as a Dense of `data`, with further attributes."""
    weights = layer.inputs[1]
    assert weights is not None
    found = ColumnCodes.of(weights, transposed=bool(layer.attr("transB", 0)))
    if data.dtype != "float32" or (data.rank or 0) < 2 or found is None:
        return NoMatch("not float32 times 8 bits with a scale per column")
    if layer.attr("transA", 0):
        return NoMatch("its first operand is transposed")
    inputs = [data, rw.const(found.codes)]
    if layer.input(2) is not None:
        row = bias_row(layer.const(2), len(found.scale))
        if row is None:
            return NoMatch("its bias differs from row to row")
        inputs.append(rw.const(row * np.float32(layer.attr("beta"))))
    scale = found.scale * np.float32(layer.attr("alpha", 1.0))
    return rw.insert("Dense", inputs, {**attrs, "scale": scale}, domain=DOMAIN).output


@rule(restored)
def bias_to_floats(rw: Rewriter, node: Node, w: Value) -> Value | NoMatch:
    """DequantizeLinear(b, scale) -> the bias in floats, which have as many bits"""
    return _in_full(rw, node, w) if w.dtype == "int32" else NoMatch("it is stored in fewer bits")


@rule(op.Gather(restored, var("ids")))
def rows_to_floats(rw: Rewriter, node: Node, ids: Value) -> Value | NoMatch | None:
    """Gather(DequantizeLinear(table, s, z), ids) -> DequantizeLinear(Gather(table, ids), s, z)"""
    restore = node.inputs[0].producer if node.inputs[0] is not None else None
    if restore is None or any(v is not None and v.rank != 0 for v in restore.inputs[1:]):
        return NoMatch("its codes have more than one scale")
    rows = rw.op.Gather(restore.inputs[0], ids, axis=node.attr("axis"))
    return rw.op.DequantizeLinear(rows, *restore.inputs[1:])


@rule(restored, op.Cast(w))
def dequantize_to_weights(rw: Rewriter, node: Node, w: Value) -> Value | NoMatch:
    """DequantizeLinear(w, scale) -> the weights in full"""
    if w.const is None or w.const.size < 2 or node.output.dtype != "float32":
        return NoMatch("these are no float32 weights")
    if any(user.op == "Gather" for user in node.output.users):
        return NoMatch("rows of it are looked up, and a table stays small")
    if node.op == "Cast":
        return rw.const(w.const.astype(np.float32))
    return _in_full(rw, node, w)


def _in_full(rw: Rewriter, node: Node, w: Value) -> Value | NoMatch:
    """What a DequantizeLinear of the constant `w` gives."""
    assert w.const is not None
    others = [node.const(k) for k in range(1, len(node.inputs))]
    if any(array is None or array.ndim > 1 for array in others):
        return NoMatch("its scale is not one constant per slice")
    shape = [1] * w.const.ndim
    shape[node.attr("axis") % w.const.ndim] = -1
    scale, *zero = (array.reshape(shape if array.size > 1 else ()) for array in others)  # type: ignore
    codes = w.const.astype(np.int32) - (zero[0].astype(np.int32) if zero else 0)
    return rw.const(codes.astype(np.float32) * scale)
