"""Quantization to integers and back; products of quantized matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, te, tirx

from graphopt.ir.graph import Node, Value
from graphopt.targets.relax import scalar
from graphopt.targets.relax.lowering import Lowering, compute, int64, lowers
from graphopt.targets.relax.ops.linear import integer_matmul
from graphopt.targets.relax.scalar import const

Scalar = Any
Place = Callable[[Sequence[Any]], list[Any]]


def _parameter_place(lower: Lowering, node: Node, scale: Value) -> Place:
    """Where the scale (and zero point) of an element is: one in all, one a slice, or a block."""
    shape, rank = scale.tensor.dims, len(node.output.tensor.dims)
    axis = node.attr("axis", 1)
    block = node.attr("block_size", 0)
    if not shape:
        return lambda i: []
    if len(shape) == 1 and (shape[0] == 1 or rank == 0):
        return lambda i: [int64(0)]
    if not -rank <= axis < rank:
        raise lower.unsupported(f"axis {axis} is out of range for rank {rank}")
    axis %= rank
    if len(shape) == 1:
        return lambda i: [i[axis]]
    if not block:
        raise lower.unsupported("its scale has several axes but no block_size is given")
    return lambda i: [tirx.floordiv(v, int64(block)) if k == axis else v for k, v in enumerate(i)]


@lowers("QuantizeLinear")
def _quantize(lower: Lowering, node: Node) -> relax.Expr:
    x, scale = node.inputs[:2]
    assert x is not None and scale is not None
    zero = node.input(2)
    dtype = lower.checked_dtype(node.output.dtype)
    if scalar.is_float(dtype):
        raise lower.unsupported(f"quantization to {dtype} is not compiled")
    work = _precision(lower, x, scale)
    place = _parameter_place(lower, node, scale)

    def emit(data: te.Tensor, step: te.Tensor, *zeros: te.Tensor) -> te.Tensor:
        def element(*i: Any) -> Scalar:
            at = place(i)
            quotient = scalar.cast(data(*i), work) / scalar.cast(step(*at), work)
            # float16 and bfloat16 quotients are rounded to that dtype first, as they are in NumPy.
            quotient = scalar.cast(scalar.cast(quotient, _rounded_dtype(node, x)), work)
            shift = scalar.cast(zeros[0](*at), work) if zeros else None
            return saturated(tirx.nearbyint(quotient), shift, dtype)

        return compute(lower.shape(node.output), element, "quantize")

    values = [value for value in (x, scale, zero) if value is not None]
    return lower.te(emit, *map(lower.expr, values))


def _precision(lower: Lowering, x: Value, scale: Value) -> str:
    """The dtype to divide in; int32 data are exact in float64."""
    lower.checked_dtype(scale.dtype)
    return "float64" if lower.checked_dtype(x.dtype) in ("int32", "float64") else "float32"


def _rounded_dtype(node: Node, x: Value) -> str:
    from graphopt.ir.types import dtype_from_onnx

    given = node.attr("precision", 0)
    if given:
        return dtype_from_onnx(given)
    return x.dtype if scalar.is_float(x.dtype) else "float32"


def saturated(whole: Scalar, zero: Scalar | None, dtype: str) -> Scalar:
    """The float `whole` (integral) plus a zero point, limited to the range of an integer dtype.

    NaN gives the lower limit.
    """
    work = scalar.dtype_of(whole)
    low, high = const(scalar.lowest(dtype), work), const(scalar.highest(dtype), work)
    value = whole if zero is None else whole + zero
    value = tirx.Select(value > low, value, low)
    return scalar.cast(tirx.Select(value < high, value, high), dtype)


@lowers("DequantizeLinear")
def _dequantize(lower: Lowering, node: Node) -> relax.Expr:
    x, scale = node.inputs[:2]
    assert x is not None and scale is not None
    zero = node.input(2)
    dtype = lower.checked_dtype(node.output.dtype)
    place = _parameter_place(lower, node, scale)
    work = scalar.working_dtype(lower.checked_dtype(scale.dtype))

    def emit(data: te.Tensor, step: te.Tensor, *zeros: te.Tensor) -> te.Tensor:
        def element(*i: Any) -> Scalar:
            at = place(i)
            # The difference is taken in integers: int32 is not exact in float32.
            value = scalar.cast(data(*i), "int32")
            value = value - scalar.cast(zeros[0](*at), "int32") if zeros else value
            return scalar.cast(scalar.cast(value, work) * scalar.cast(step(*at), work), dtype)

        return compute(lower.shape(node.output), element, "dequantize")

    lower.checked_dtype(x.dtype)
    values = [value for value in (x, scale, zero) if value is not None]
    return lower.te(emit, *map(lower.expr, values))


@lowers("QLinearMatMul")
def _qlinear_matmul(lower: Lowering, node: Node) -> relax.Expr:
    values = list(node.inputs)
    assert all(value is not None for value in values)
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = values
    dtype = lower.checked_dtype(node.output.dtype)
    product = integer_matmul(lower, a, b, a_zero, b_zero)  # type: ignore[arg-type]
    rank = len(node.output.tensor.dims)
    parameters = [(a_scale, -2), (b_scale, -1), (y_scale, -2), (y_zero, -2)]
    places = [_vector_place(v, axis, rank) for v, axis in parameters]  # type: ignore[arg-type]

    def emit(sums: te.Tensor, *given: te.Tensor) -> te.Tensor:
        def element(*i: Any) -> Scalar:
            found = [scalar.cast(t(*at(i)), "float32") for t, at in zip(given, places)]
            factor = found[0] * found[1] / found[2]
            value = scalar.cast(sums(*i), "float32") * factor + found[3]
            return saturated(tirx.nearbyint(value), None, dtype)

        return compute(sums.shape, element, "requantize")

    return lower.te(emit, product, *[lower.expr(v) for v, _ in parameters])  # type: ignore[arg-type]


def _vector_place(value: Value, vector_axis: int, rank: int) -> Place:
    """Where an element's parameter stands: one in all, or one a row (-2) or column (-1)."""
    shape = value.tensor.dims
    if len(shape) == 1 and rank >= -vector_axis:
        return lambda i: [int64(0) if shape[0] == 1 else i[vector_axis]]
    return lambda i: [int64(0) if s == 1 else i[k - len(shape)] for k, s in enumerate(shape)]
