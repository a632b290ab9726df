"""Dense layers between QuantizeLinear and DequantizeLinear, computed in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.analysis.cost import Cost, cost_rule, streaming
from graphopt.ir.dims import product
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.rewrite.pattern import Pattern
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.kernels.int8_gemm import (
    Quantization,
    int8_gemm,
    int8_params,
    pack_int8,
    pack_row,
    pack_start,
)
from graphopt.targets.cpu.packed_weights import ColumnCodes, bias_row
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.relax.lowering import Lowering, lowers

x, w, c, y = var("x"), var("w"), const("c"), var("y")
_ACTIVATIONS = {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh"}
_SHIFT = {"uint8": 0, "int8": 128}  # what makes the bytes of the data unsigned


@type_rule("QuantizedDense", domain=DOMAIN)
def _quantized_dense_type(node: Node) -> list[Type | None]:
    data, weights = node.inputs[0], node.inputs[1]
    assert data is not None and weights is not None
    return [tensor_type(data.dtype, [*data.tensor.dims[:-1], weights.tensor.dims[1]])]


@cost_rule("QuantizedDense", domain=DOMAIN)
def _quantized_dense_cost(node: Node) -> Cost:
    """An operation on 8-bit integers counts as one, though a core does more of them a second."""
    weights = node.inputs[1]
    assert weights is not None
    k = product(weights.tensor.dims[:1])
    return streaming(node, (2 * k + 4) * product(node.output.tensor.dims))


@dataclass(frozen=True)
class _Data:
    """An operand that is rounded to 8 bits, and how."""

    value: Value
    quantization: Quantization


@rule(op.MatMul(x, w))
def matmul_to_quantized(rw: Rewriter, x: Value, w: Value) -> Value | NoMatch:
    """MatMul(DequantizeLinear(QuantizeLinear(x)), DequantizeLinear(w)) -> QuantizedDense(x, w)"""
    data, weights = _data(x), ColumnCodes.of(w, transposed=False)
    if data is None or weights is None or (x.rank or 0) < 2:
        return NoMatch("its operands are not quantized in a way that the kernel knows")
    return _emit(rw, data, weights, np.zeros(len(weights.scale), np.float32))


@rule(op.Gemm(x, w), op.Gemm(x, w, c))
def gemm_to_quantized(rw: Rewriter, node: Node, x: Value, w: Value) -> Value | NoMatch:
    """Gemm(DequantizeLinear(QuantizeLinear(x)), DequantizeLinear(w), c) -> QuantizedDense(x, w)"""
    data, weights = _data(x), ColumnCodes.of(w, transposed=bool(node.attr("transB")))
    if data is None or weights is None or node.attr("transA"):
        return NoMatch("its operands are not quantized in a way that the kernel knows")
    if (node.attr("alpha"), node.attr("beta")) != (1.0, 1.0):
        return NoMatch("it scales its operands")
    bias = node.const(2) if node.input(2) is not None else np.zeros(1, np.float32)
    row = bias_row(bias, len(weights.scale))
    if row is None:
        return NoMatch("its bias differs from row to row")
    return _emit(rw, data, weights, row)


def _emit(rw: Rewriter, data: _Data, weights: ColumnCodes, bias: np.ndarray) -> Value:
    rounding = data.quantization
    constants = [rw.const(array) for array in (weights.codes, weights.scale, bias)]
    attrs = {"scale": rounding.scale, "zero": rounding.zero}
    return rw.insert("QuantizedDense", [data.value, *constants], attrs, domain=DOMAIN).output


def _data(value: Value) -> _Data | None:
    restore = value.producer
    if restore is None or restore.op != "DequantizeLinear" or restore.inputs[0] is None:
        return None
    quantize = restore.inputs[0].producer
    if quantize is None or quantize.op != "QuantizeLinear" or quantize.inputs[0] is None:
        return None
    dtype, scale, zero = restore.inputs[0].dtype, restore.const(1), _zero(restore)
    same = np.array_equal(quantize.const(1), scale) and _zero(quantize) == zero  # type: ignore[arg-type]
    if dtype not in _SHIFT or scale is None or scale.size != 1 or zero is None or not same:
        return None
    source = quantize.inputs[0]
    if source.dtype != "float32" or value.dtype != "float32":
        return None
    return _Data(source, Quantization(float(scale.reshape(())), zero + _SHIFT[dtype]))


def _zero(node: Node) -> int | None:
    """The zero point of a (De)QuantizeLinear if it is one number; 0 where it has none."""
    if node.input(2) is None:
        return 0
    found = node.const(2)
    return int(found.reshape(())) if found is not None and found.size == 1 else None


layer = Pattern("QuantizedDense", (x, ...), domain=DOMAIN, name="y")


@rule(op.Add(layer, c))
def add_to_bias(rw: Rewriter, y: Value, c: Value) -> Value | NoMatch:
    """Add(QuantizedDense(x, w, b), c) -> QuantizedDense(x, w, b + c)"""
    before = y.producer
    assert before is not None
    bias = before.const(3)
    row = bias_row(c.const, y.tensor.dims[-1]) if (c.rank or 0) <= (y.rank or 0) else None  # type: ignore[arg-type]
    if row is None or bias is None or before.attrs.get("activation"):
        return NoMatch("it does not add one number per column, or follows an activation")
    inputs = [*before.inputs[:3], rw.const(bias + row)]
    return rw.insert("QuantizedDense", inputs, dict(before.attrs), domain=DOMAIN).output


@rule(*(getattr(op, name)(layer) for name in _ACTIVATIONS))
def activation_to_quantized(rw: Rewriter, node: Node, y: Value) -> Value | NoMatch:
    """Relu(QuantizedDense(…)) -> QuantizedDense(…, activation="relu")"""
    before = y.producer
    assert before is not None
    if before.attrs.get("activation"):
        return NoMatch("it has an activation already")
    attrs = {**before.attrs, "activation": _ACTIVATIONS[node.op_type]}
    return rw.insert("QuantizedDense", before.inputs, attrs, domain=DOMAIN).output


RULES = (matmul_to_quantized, gemm_to_quantized, add_to_bias, activation_to_quantized)


@lowers("QuantizedDense", domain=DOMAIN)
def _lower_quantized_dense(lower: Lowering, node: Node) -> Any:
    data = node.inputs[0]
    codes, scale, bias = (node.const(k) for k in (1, 2, 3))
    assert data is not None and codes is not None and scale is not None and bias is not None
    k, n = codes.shape
    rounding, params = Quantization(node.attrs["scale"], node.attrs["zero"]), int8_params(n)
    factor = scale * np.float32(rounding.scale)
    packed = [pack_int8(codes, params), pack_start(codes, rounding.zero, params)]
    packed += [pack_row(factor, params), pack_row(bias, params)]
    kernel = int8_gemm(k, n, rounding, params, Activation(node.attrs.get("activation", "none")))
    rows = lower.dim(product(data.tensor.dims[:-1]))
    flat = lower.reshape(lower.expr(data), [rows, k])
    arguments = [flat, *map(lower.constant, packed)]
    (result,) = lower.kernel(kernel, arguments, [([rows, n], "float32")])
    return lower.reshape(result, lower.shape(node.output))
