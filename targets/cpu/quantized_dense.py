"""Dense layers computed in 8 bits: their data have one range, or a range for each row."""

from __future__ import annotations

import numpy as np
from tvm.tirx import PrimFunc

from graphopt.ir.graph import Node, Value
from graphopt.ops import dynamic_matmul
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.rewrite.pattern import Pattern
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.codes import rounding as codes_of
from graphopt.targets.cpu.kernels.int8_gemm import int8_gemm, int8_params, pack_int8, pack_start
from graphopt.targets.cpu.kernels.panels import pack_bias, pack_columns
from graphopt.targets.cpu.kernels.row_codes import (
    GROUP,
    HIGHEST,
    Quantization,
    RowQuantization,
)
from graphopt.targets.cpu.packed_weights import dense_of, shared
from graphopt.targets.kernels.epilogue import Epilogue

x, d, w, c = var("x"), var("d"), const("w"), const("c")
_dynamic = Pattern(dynamic_matmul.OP_TYPE, (x, w, c), domain=dynamic_matmul.DOMAIN)
_SHIFT = {"uint8": 0, "int8": 128}  # what makes the bytes of the data unsigned


@rule(op.MatMul(d, shared), op.Gemm(d, shared), op.Gemm(d, shared, c))
def quantized_to_dense(rw: Rewriter, node: Node, d: Value) -> Value | NoMatch:
    """Gemm(DequantizeLinear(QuantizeLinear(x)), DequantizeLinear(w), c) -> Dense(x, w, c; data)"""
    found = _rounded(d)
    if isinstance(found, NoMatch):
        return found
    source, rounding = found
    return dense_of(rw, node, source, {"data": rounding})


@rule(op.MatMul(d, shared), op.Gemm(d, shared), op.Gemm(d, shared, c))
def codes_to_dense(rw: Rewriter, node: Node, d: Value) -> Value | NoMatch:
    """Gemm(DequantizeLinear(q), DequantizeLinear(w), c) -> Dense(q, w, c; data)

    Where others read the codes too, or no QuantizeLinear makes them, so that the layer would not be
    faster rounding its data itself.
    """
    restore = d.producer
    codes = restore.inputs[0] if restore is not None else None
    if restore is None or restore.op != "DequantizeLinear" or codes is None:
        return NoMatch("its data are not rounded to 8 bits")
    found = codes_of(restore)
    if found is None or codes.const is not None or d.dtype != "float32":
        return NoMatch("its data are rounded in a way that the kernel does not know")
    if d.tensor.dims[-1] % GROUP != 0:
        return NoMatch(f"its codes are not of whole groups of {GROUP} bytes")
    alone = len(codes.uses) == len(d.uses) == 1 and not codes.is_graph_output
    if alone and not isinstance(_rounded(d), NoMatch):
        return NoMatch("no other reads its codes")
    return dense_of(rw, node, codes, {"data": found})


def _rows_of(product: Node) -> RowQuantization:
    return RowQuantization(product.attr("levels", dynamic_matmul.LEVELS))


@rule(_dynamic)
def dynamic_to_dense(rw: Rewriter, node: Node, x: Value, w: Value, c: Value) -> Value:
    """DynamicMatMul(x, w, c) -> Dense(x, w; scale=c, a range for each row of data)"""
    attrs = {"data": _rows_of(node), "scale": c.const}
    return rw.insert("Dense", [x, w], attrs, domain=DOMAIN).output


@rule(_dynamic)
def dynamic_to_floats(rw: Rewriter, node: Node, x: Value, w: Value, c: Value) -> Value:
    """DynamicMatMul(x, w, c) -> MatMul(what is left of x after rounding, DequantizeLinear(w, c))

    For targets that do not multiply bytes of rows with a range each.
    """
    make, last = rw.op, rw.const(np.array([-1], np.int64))

    def number(value: float) -> Value:
        return rw.const(np.array(value, np.float32))

    high = make.Max(make.ReduceMax(x, last, keepdims=1), number(0))
    low = make.Min(make.ReduceMin(x, last, keepdims=1), number(0))
    spread = make.Sub(make.Mul(high, number(0.5)), make.Mul(low, number(0.5)))
    apart = make.Mul(spread, number(2 / _rows_of(node).levels))
    step = make.Max(apart, number(dynamic_matmul.LEAST_STEP))
    zero = make.Round(make.Div(make.Neg(low), step))
    codes = make.Add(make.Round(make.Div(x, step)), zero)
    limited = make.Min(make.Max(codes, number(0)), number(HIGHEST))
    data = make.Mul(make.Sub(limited, zero), step)
    return make.MatMul(data, make.DequantizeLinear(w, c, axis=1))


def _rounded(value: Value) -> tuple[Value, Quantization] | NoMatch:
    """What `value` is after rounding to 8 bits and back, and how it is rounded."""
    restore = value.producer
    if restore is None or restore.op != "DequantizeLinear" or restore.inputs[0] is None:
        return NoMatch("its data are not rounded to 8 bits")
    quantize = restore.inputs[0].producer
    if quantize is None or quantize.op != "QuantizeLinear" or quantize.inputs[0] is None:
        return NoMatch("its data are not rounded to 8 bits")
    dtype, scale, zero = restore.inputs[0].dtype, restore.const(1), _zero(restore)
    same = np.array_equal(quantize.const(1), scale) and _zero(quantize) == zero  # type: ignore[arg-type]
    if dtype not in _SHIFT or scale is None or scale.size != 1 or zero is None or not same:
        return NoMatch("its data are rounded in a way that the kernel does not know")
    source = quantize.inputs[0]
    if source.dtype != "float32" or value.dtype != "float32":
        return NoMatch("its data are not float32")
    return source, Quantization(float(scale.reshape(())), zero + _SHIFT[dtype])


def _zero(node: Node) -> int | None:
    """The zero point of a (De)QuantizeLinear if it is one number; 0 where it has none."""
    if node.input(2) is None:
        return 0
    found = node.const(2)
    return int(found.reshape(())) if found is not None and found.size == 1 else None


@rule(Pattern("Dense", (x, ...), domain=DOMAIN))
def floats_to_codes(rw: Rewriter, node: Node) -> Value | NoMatch:
    """Dense(Dense(x, …; data), …; data=q) -> Dense(Dense(x, …; data, result=q), …; data=q)"""
    value, readers = node.output, node.output.uses
    if "data" not in node.attrs or "result" in node.attrs or value.is_graph_output:
        return NoMatch("it does not multiply in 8 bits")
    wanted = {
        user.attrs.get("data") if isinstance(user, Node) and slot == 0 else None
        for user, slot in readers
    }
    if len(wanted) != 1 or not isinstance(next(iter(wanted)), Quantization):
        return NoMatch("not all that read it round it to the same 8 bits, in one range")
    if value.tensor.dims[-1] % GROUP != 0:
        return NoMatch(f"its rows are not of whole groups of {GROUP} bytes")
    attrs = {**node.attrs, "result": wanted.pop()}
    return rw.insert("Dense", node.inputs, attrs, domain=DOMAIN).output


def int8_kernel(
    node: Node, codes: np.ndarray, epilogue: Epilogue
) -> tuple[PrimFunc, list[np.ndarray]]:
    """The kernel of a Dense that rounds its data, and the constants that it takes."""
    k, n = codes.shape
    data, bias, rounding = node.inputs[0], node.const(2), node.attrs["data"]
    amx = node.attrs.get("amx")
    params = node.attrs.get("params") or int8_params(n, amx, node.attrs["lanes"])
    assert data is not None
    scale, zero = node.attrs["scale"], 1  # each row multiplies what belongs to it
    if isinstance(rounding, Quantization):
        scale, zero = scale * np.float32(rounding.scale), rounding.zero
    packed = [pack_int8(codes, params, amx), pack_start(codes, zero, params)]
    packed += [pack_bias(scale, n, params), pack_bias(bias, n, params)]
    columns = node.attrs.get("columns")
    packed += [] if columns is None else [pack_columns(columns, params)]
    kernel = int8_gemm(
        k,
        n,
        rounding,
        params,
        epilogue,
        takes_codes=data.dtype == "uint8",
        result=node.attrs.get("result"),
        amx=amx,
    )
    return kernel, packed
