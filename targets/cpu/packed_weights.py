"""Weights that a model stores in few bits: dense layers read them so, other ops in full."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Attr, Node, Value
from graphopt.ops.quantized_lookup import packed
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
        if stored is None or scale is None or stored.ndim != 2:
            return None
        if not _are_codes(restore.inputs[0]):
            return None
        column_axis = 0 if transposed else 1
        if scale.size > 1 and (scale.ndim != 1 or restore.attr("axis") % 2 != column_axis):
            return None
        zero = restore.const(2) if restore.input(2) is not None else np.zeros((), np.int32)
        if zero is None or zero.size not in (1, scale.size):
            return None
        codes = stored.T if transposed else stored
        zero = zero.reshape(-1).astype(np.int32)
        if zero.any() or codes.dtype != np.int8:  # else a large table is not read
            codes = codes.astype(np.int32) - zero
            if codes.size and (codes.min() < -128 or codes.max() > 127):
                return None
        row = np.broadcast_to(scale.reshape(-1), (codes.shape[1],))
        return ColumnCodes(codes.astype(np.int8, copy=False), row.astype(np.float32))


_IN_BYTES = {"int4": np.int8, "uint4": np.uint8}


def _are_codes(value: Value | None) -> bool:
    """True for integers of at most 8 bits."""
    return value is not None and value.dtype in ("int8", "uint8", *_IN_BYTES)


def _in_bytes(rw: Rewriter, value: Value) -> Value:
    """The same codes in 8 bits each, which compiled code can read."""
    if value.const is None or value.dtype not in _IN_BYTES:
        return value
    return rw.const(value.const.astype(_IN_BYTES[value.dtype]))


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
    """A Gemm or MatMul of 8-bit weights as a Dense of `data`, with further attributes.

    Data are float32, or codes, if the attributes say how these were rounded.
    """
    weights = layer.inputs[1]
    assert weights is not None
    found = ColumnCodes.of(weights, transposed=bool(layer.attr("transB", 0)))
    usable = ("float32", "uint8") if "data" in attrs else ("float32",)
    if data.dtype not in usable or (data.rank or 0) < 2 or found is None:
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


@rule(op.Gather(shared, var("ids")))
def rows_to_floats(rw: Rewriter, node: Node, ids: Value) -> Value | NoMatch | None:
    """Gather(DequantizeLinear(table, s, z), ids) -> DequantizeLinear(Gather(table, ids), s, z)

    With a scale for each row it is a QuantizedLookup; scales of blocks are looked up like the rows.
    """
    table = node.inputs[0]
    restore = table.producer if table is not None else None
    if table is None or restore is None or not _are_codes(restore.inputs[0]):
        return NoMatch("its codes are not integers of at most 8 bits")
    if ids.rank is None or not all(v is None or v.const is not None for v in restore.inputs):
        return NoMatch("its scales are not constants, or the rank of the ids is not known")
    scale, rank = restore.inputs[1], table.rank
    assert scale is not None
    by_rows = node.attr("axis") == 0 and rank == 2 and scale.rank
    if scale.rank != 0 and not by_rows:
        return NoMatch("its codes have more than one scale, or are not looked up by rows")
    attrs: dict[str, Attr] = {}
    if by_rows and scale.rank == 1 and restore.attr("axis") % 2 == 0:
        found = ColumnCodes.of(table, transposed=True)
        if found is None:
            return NoMatch("its codes need more than 8 bits, less their zero point")
        return _quantized_lookup(rw, found, ids, restore.inputs[0])
    if by_rows:
        if restore.attr("axis") % 2 == 0:
            return NoMatch("a scale is that of several rows")
        attrs = {"axis": ids.rank}
        if scale.rank == 2:
            attrs["block_size"] = restore.attr("block_size", 0)

    def looked_up(value: Value | None) -> Value | None:
        if value is None:
            return None
        value = _in_bytes(rw, value)
        return rw.op.Gather(value, ids, axis=node.attr("axis")) if value.rank == rank else value

    return rw.op.DequantizeLinear(*map(looked_up, restore.inputs), **attrs)


def _quantized_lookup(rw: Rewriter, table: ColumnCodes, ids: Value, stored: Value | None) -> Value:
    """Rows of a table of which each has a scale; 4 bits an element where the model has so few."""
    codes, bits = np.ascontiguousarray(table.codes.T), 8
    assert stored is not None
    halves = codes.shape[1] % 2 == 0 and stored.dtype in _IN_BYTES
    if halves and codes.size and codes.min() >= -8 and codes.max() <= 7:
        codes, bits = packed(codes), 4
    inputs = [rw.const(codes), rw.const(table.scale), ids]
    return rw.insert("QuantizedLookup", inputs, {"bits": bits}, domain=GRAPHOPT).output


@rule(restored)
def codes_in_bytes(rw: Rewriter, node: Node, w: Value) -> Value | NoMatch | None:
    """DequantizeLinear(w in 4 bits, ...) -> one of 8 bits; of floats in 8 bits -> in full"""
    if w.dtype.startswith("float8"):
        return _in_full(rw, node, w)
    if w.dtype not in _IN_BYTES:
        return None
    inputs = [None if v is None else _in_bytes(rw, v) for v in node.inputs]
    return rw.op.DequantizeLinear(*inputs, **node.attrs)


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
    exact = np.float32 if w.dtype.startswith("float8") else np.int32
    scale, *zero = (array.reshape(shape if array.size > 1 else ()) for array in others)  # type: ignore
    codes = w.const.astype(exact) - (zero[0].astype(exact) if zero else 0)
    return rw.const(codes.astype(np.float32) * scale)
