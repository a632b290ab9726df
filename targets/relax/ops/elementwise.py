"""Ops that compute each output element from one element of each input, broadcast."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from tvm import relax, tirx

from graphopt.ir.graph import Node
from graphopt.targets.relax import scalar
from graphopt.targets.relax.broadcast import elementwise
from graphopt.targets.relax.lowering import Lowering, lowers
from graphopt.targets.relax.scalar import const, dtype_of

Scalar = Any
Unary = Callable[[Node, Scalar], Scalar]


def unary(*ops: str) -> Callable[[Unary], Unary]:
    """Register ops given by a function of the node and one element."""

    def register(function: Unary) -> Unary:
        @lowers(*ops)
        def convert(lower: Lowering, node: Node) -> relax.Expr:
            return elementwise(lower, node, functools.partial(function, node), node.operands[:1])

        return function

    return register


def _like(x: Scalar, value: float) -> Scalar:
    return const(value, dtype_of(x))


# ------------------------------------------------------------------- functions

_LIBM = ("Tan", "Asin", "Acos", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh")
for _op in _LIBM:
    unary(_op)(lambda node, x: scalar.libm(node.op_type.lower(), x))

_FUNCTIONS: dict[str, Callable[[Scalar], Scalar]] = {
    "Abs": scalar.absolute,
    "Atan": scalar.atan,
    "Ceil": tirx.ceil,
    "Cos": tirx.cos,
    "Erf": scalar.erf,
    "Exp": scalar.exp,
    "Floor": tirx.floor,
    "IsNaN": tirx.isnan,
    "Log": tirx.log,
    "Neg": lambda x: -x,
    "Not": tirx.Not,
    "BitwiseNot": tirx.bitwise_not,
    "Reciprocal": lambda x: _like(x, 1.0) / x,
    "Round": tirx.nearbyint,
    "Sigmoid": scalar.sigmoid,
    "Sin": tirx.sin,
    "Softplus": scalar.softplus,
    "Softsign": lambda x: x / (_like(x, 1.0) + tirx.abs(x)),
    "Sqrt": tirx.sqrt,
    "Tanh": scalar.tanh,
    "Mish": lambda x: x * scalar.tanh(scalar.softplus(x)),
}
for _op in _FUNCTIONS:
    unary(_op)(lambda node, x: _FUNCTIONS[node.op_type](x))


@unary("Relu")
def _relu(node: Node, x: Scalar) -> Scalar:
    return tirx.Select(x < _like(x, 0), _like(x, 0), x)


@unary("Sign")
def _sign(node: Node, x: Scalar) -> Scalar:
    zero = _like(x, 0)
    below = x if not _has_sign(x) else tirx.Select(x < zero, _like(x, -1), x)
    return tirx.Select(x > zero, _like(x, 1), below)


def _has_sign(x: Scalar) -> bool:
    return scalar.is_float(dtype_of(x)) or scalar.is_signed(dtype_of(x))


@unary("IsInf")
def _isinf(node: Node, x: Scalar) -> Scalar:
    positive = tirx.EQ(x, _like(x, math.inf))
    negative = tirx.EQ(x, _like(x, -math.inf))
    wanted = [
        test
        for test, attr in ((positive, "detect_positive"), (negative, "detect_negative"))
        if node.attr(attr, 1)
    ]
    return tirx.any(*wanted) if wanted else tirx.const(False, "bool")


# ----------------------------------------------------------------- activations


@unary("LeakyRelu")
def _leaky_relu(node: Node, x: Scalar) -> Scalar:
    return tirx.Select(x < _like(x, 0), x * _like(x, node.attr("alpha")), x)


@unary("Elu")
def _elu(node: Node, x: Scalar) -> Scalar:
    one = _like(x, 1)
    return tirx.Select(x < _like(x, 0), _like(x, node.attr("alpha")) * (scalar.exp(x) - one), x)


@unary("Selu")
def _selu(node: Node, x: Scalar) -> Scalar:
    alpha, gamma = _like(x, node.attr("alpha")), _like(x, node.attr("gamma"))
    negative = alpha * scalar.exp(x) - alpha
    return gamma * tirx.Select(x <= _like(x, 0), negative, x)


@unary("HardSigmoid")
def _hard_sigmoid(node: Node, x: Scalar) -> Scalar:
    line = _like(x, node.attr("alpha")) * x + _like(x, node.attr("beta"))
    return scalar.maximum(scalar.minimum(line, _like(x, 1)), _like(x, 0))


@unary("HardSwish")
def _hard_swish(node: Node, x: Scalar) -> Scalar:
    line = x * _like(x, 1 / 6) + _like(x, 0.5)
    return x * scalar.maximum(scalar.minimum(line, _like(x, 1)), _like(x, 0))


@unary("Swish")
def _swish(node: Node, x: Scalar) -> Scalar:
    return x * scalar.sigmoid(_like(x, node.attr("alpha")) * x)


@unary("Gelu")
def _gelu(node: Node, x: Scalar) -> Scalar:
    half, one = _like(x, 0.5), _like(x, 1)
    if node.attr("approximate") == "tanh":
        cubed = x + _like(x, 0.044715) * x * x * x
        return half * x * (one + scalar.tanh(_like(x, math.sqrt(2 / math.pi)) * cubed))
    return half * x * (one + scalar.erf(x * _like(x, math.sqrt(0.5))))


@unary("ThresholdedRelu")
def _thresholded_relu(node: Node, x: Scalar) -> Scalar:
    return tirx.Select(x > _like(x, node.attr("alpha")), x, _like(x, 0))


@lowers("Shrink")
def _shrink(lower: Lowering, node: Node) -> relax.Expr:
    # The threshold may be a fraction where the data are integers, so compare as floats.
    work = "float32" if node.output.dtype in ("float32", "float16", "bfloat16") else "float64"
    bias, threshold = const(node.attr("bias"), work), const(node.attr("lambd"), work)

    def element(x: Scalar) -> Scalar:
        wide = scalar.cast(x, work)
        above = tirx.Select(wide > threshold, wide - bias, const(0, work))
        return tirx.Select(wide < -threshold, wide + bias, above)

    return elementwise(lower, node, element, node.inputs[:1])  # type: ignore[arg-type]


@lowers("PRelu")
def _prelu(lower: Lowering, node: Node) -> relax.Expr:
    def element(x: Scalar, slope: Scalar) -> Scalar:
        return tirx.Select(x < _like(x, 0), x * slope, x)

    return elementwise(lower, node, element, node.operands)


@lowers("Clip")
def _clip(lower: Lowering, node: Node) -> relax.Expr:
    low, high = node.input(1), node.input(2)

    def element(x: Scalar, *limits: Scalar) -> Scalar:
        bounds = list(limits)
        if low is not None:
            least = bounds.pop(0)
            x = tirx.Select(x < least, least, x)
        if high is not None:
            most = bounds.pop(0)
            x = tirx.Select(x > most, most, x)
        return x

    return elementwise(lower, node, element, node.operands)


# ------------------------------------------------------------ several operands

BINARY: dict[str, Callable[[Scalar, Scalar], Scalar]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": scalar.divide,
    "Equal": scalar.equal,
    "Less": lambda a, b: a < b,
    "LessOrEqual": lambda a, b: a <= b,
    "Greater": lambda a, b: a > b,
    "GreaterOrEqual": lambda a, b: a >= b,
    "And": tirx.And,
    "Or": tirx.Or,
    "Xor": scalar.differ,
    "BitwiseAnd": tirx.bitwise_and,
    "BitwiseOr": tirx.bitwise_or,
    "BitwiseXor": tirx.bitwise_xor,
    "Max": scalar.maximum,
    "Min": scalar.minimum,
    "Sum": lambda a, b: a + b,
}


@lowers(*BINARY)
def _folded(lower: Lowering, node: Node) -> relax.Expr:
    function = BINARY[node.op_type]

    def element(*operands: Scalar) -> Scalar:
        return functools.reduce(function, operands)

    return elementwise(lower, node, element, node.operands)


@lowers("Mean")
def _mean(lower: Lowering, node: Node) -> relax.Expr:
    def element(*operands: Scalar) -> Scalar:
        total = functools.reduce(lambda a, b: a + b, operands)
        return total / _like(total, len(operands))

    return elementwise(lower, node, element, node.operands)


@lowers("Mod")
def _mod(lower: Lowering, node: Node) -> relax.Expr:
    c_sign = bool(node.attr("fmod"))
    return elementwise(lower, node, lambda a, b: scalar.remainder(a, b, c_sign), node.operands)


@lowers("BitShift")
def _bit_shift(lower: Lowering, node: Node) -> relax.Expr:
    left = node.attr("direction") == "LEFT"
    return elementwise(lower, node, lambda a, b: scalar.shift(a, b, left), node.operands)


@lowers("Where")
def _where(lower: Lowering, node: Node) -> relax.Expr:
    return elementwise(lower, node, tirx.Select, node.operands)


@lowers("Pow")
def _pow(lower: Lowering, node: Node) -> relax.Expr:
    base, exponent = node.operands
    power = (
        exponent.const.item() if exponent.const is not None and exponent.const.size == 1 else None
    )
    if power in _POWERS and scalar.is_float(base.dtype):
        return elementwise(lower, node, lambda x, _: _POWERS[power](x), [base, exponent])
    return elementwise(lower, node, _power, [base, exponent])


def _power(x: Scalar, exponent: Scalar) -> Scalar:
    if scalar.is_float(dtype_of(x)):
        return scalar.libm("pow", x, scalar.cast(exponent, dtype_of(x)))
    if scalar.is_float(dtype_of(exponent)):
        return scalar.libm("pow", x.astype("float64"), exponent.astype("float64"))
    return scalar.integer_power(x, exponent)


def _square_root(x: Scalar) -> Scalar:
    """x ** 0.5, which unlike the square root is infinite at minus infinity."""
    return tirx.Select(tirx.EQ(x, _like(x, -math.inf)), _like(x, math.inf), tirx.sqrt(x))


_POWERS: dict[Any, Callable[[Scalar], Scalar]] = {
    0.5: _square_root,
    1: lambda x: x,
    2: lambda x: x * x,
    3: lambda x: x * x * x,
    -1: lambda x: _like(x, 1) / x,
}
