"""Elementary functions of float32 that LLVM turns into vector code.

`T.exp` and `T.tanh` become calls of the scalar expf and tanhf, one a lane.  The functions below are
operators of their own, which the last pass of TVM expands (`FLowerIntrinsic`) into additions,
multiplications, comparisons and shifts, of whatever vector length the operand has by then.  Before
that they would be too much for TVM: it replaces every name by its value, rewrites floats as if they
were real numbers, (x + c) - c to x, and took 45 s to compile an `erf` in this way.

The errors quoted are the largest over all normal float32 results, against float64, on a machine
with fused multiply-add.  NaN gives NaN.  A process that reads a module with these operators must
have imported this file.
"""

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.ir import register_op_attr
from tvm.tirx.op import register_intrin_lowering

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 0.693359375  # 9 significant bits: its product with a small integer is exact
_LN2_LOW = -2.12194440e-4
_ROUND = 12582912.0  # 1.5 * 2**23: adding it leaves the nearest integer in the low mantissa bits
_ROUND_BITS = 0x4B400000
_ROUND_TO_EXPONENT = _ROUND + 127.0  # and 127 more: as the exponent of a float32 is written
_EXP_LEAST = -87.33654  # e**x is a normal number from here on
_EXP_ZERO = -88.02969  # -127 * ln 2
_EXP_INFINITE = 88.6  # between 127.5 * ln 2 and 128.5 * ln 2
# exp(r) = 1 + r + r**2 * P(r) for |r| <= ln(2) / 2, as in Cephes expf
_EXP = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
# erf(x) = x * P(x**2) for |x| < 0.9, and 1 - exp(Q(x)) for 0.9 <= x <= 4; minimax in relative error
_ERF = (
    8.3823903053e-5,
    -8.1455974605e-4,
    5.2012860728e-3,
    -2.6859500101e-2,
    1.1283697325e-1,
    -3.7612633854e-1,
    1.1283791666,
)
_LOG_ERFC = (
    1.9821898685e-4,
    -3.0654840159e-3,
    2.2315189124e-2,
    -1.0411363145e-1,
    -6.3697613433e-1,
    -1.1277972139,
    -1.6645414390e-4,
)
# atan(z) = z + z**3 * P(z**2) for |z| <= tan(pi / 8), as in Cephes atanf
_ATAN = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)
_PURE = 1  # CallEffectKind::kPure


def fast_exp(x: Any) -> Any:
    """e**x of a float32 expression; 1.1 ulp, exact at +-infinity, 0 where it is subnormal."""
    return tirx.call_intrin("float32", "graphopt.exp", x)


def exp_of_negative(x: Any) -> Any:
    """e**x of a float32 expression that is 0 at most, in 13 steps where `fast_exp` takes 21.

    1.1 ulp, exact at -infinity; below -87.3, where it is subnormal, it may be 0.
    """
    return tirx.call_intrin("float32", "graphopt.exp_of_negative", x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + e**-x) of a float32 expression; 2.5 ulp, below -88.4 it is 0."""
    return tirx.call_intrin("float32", "graphopt.sigmoid", x)


def tanh(x: Any) -> Any:
    """Hyperbolic tangent of a float32 expression; 2.6 ulp, +-1 at +-infinity."""
    return tirx.call_intrin("float32", "graphopt.tanh", x)


def erf(x: Any) -> Any:
    """Error function of a float32 expression; 2.8 ulp, +-1 at +-infinity."""
    return tirx.call_intrin("float32", "graphopt.erf", x)


def atan(x: Any) -> Any:
    """Arc tangent of a float32 expression; 2.7 ulp, +-pi / 2 at +-infinity."""
    return tirx.call_intrin("float32", "graphopt.atan", x)


def maximum(a: Any, b: Any) -> Any:
    """The larger of two expressions of the same float type, NaN if one of them is.

    `T.max` loses a NaN, and `T.isnan` keeps TVM from vectorizing its loop.
    """
    return tirx.call_intrin(a.ty.dtype, "graphopt.maximum", a, b)


def same_or_nan(x: Any, y: Any) -> Any:
    """int32, not 0 if two expressions of a float type are equal, or `x` is NaN; in vectors too."""
    return tirx.call_intrin("int32", "graphopt.same_or_nan", x, y)


def clip(x: Any, low: float, high: float) -> Any:
    """A float32 expression limited to [low, high]; NaN stays NaN, unlike under T.min and T.max."""
    least, most = tirx.const(low, "float32"), tirx.const(high, "float32")
    return tirx.Select(x > most, most, tirx.Select(x < least, least, x))


# ------------------------------------------------------------------------ expansion

Name = Callable[[Any], tirx.Var]


def _expands(operator: str) -> Callable[[Callable[..., Any]], None]:
    """Decorator: `steps(name, *operands)` gives the value of `operator`, of scalars or vectors.

    `name(value)` computes a value once; it becomes a `Let` around the result.
    """

    def register(steps: Callable[..., Any]) -> None:
        def expand(call: Any) -> Any:
            named: list[tuple[tirx.Var, Any]] = []

            def name(value: Any) -> tirx.Var:
                named.append((tirx.Var("t", value.ty), value))
                return named[-1][0]

            result = steps(name, *map(name, call.args))
            for variable, value in reversed(named):
                result = tirx.Let(variable, value, result)
            return result

        register_op_attr(operator, "TCallEffectKind", _PURE)
        register_op_attr(operator, "TVectorizable", True)
        register_op_attr(operator, "TScriptPrinterName", operator)
        register_intrin_lowering(operator, "default", f=expand)

    return register


@_expands("graphopt.exp")
def _(name: Name, x: tirx.Var) -> Any:
    """exp(x) = 2**k * exp(r) with k = round(x / ln 2).

    2**k is applied in two factors, because 2**128 is no float32 while its product with exp(r) may
    be. No step makes a subnormal number: Intel's cores take some 150 cycles for a vector with one,
    and masked scores would give softmax hundreds.
    """
    k, r = _reduce(name, name(_limit(x, _EXP_LEAST, 88.8)))
    half = name(k >> 1)
    value = (_exp_minus_1(r) + 1.0) * _power_of_2(half) * _power_of_2(k - half)
    return tirx.Select(x < _EXP_LEAST, _constant(0.0, x), tirx.Select(tirx.isnan(x), x, value))


@_expands("graphopt.exp_of_negative")
def _(name: Name, x: tirx.Var) -> Any:
    """exp(x) = 2**k * exp(r), k being the low bits of a sum as they stand in an exponent.

    They are 0 where x is least, and so is what is seen as 2**k. NaN passes through each step.
    """
    x = name(tirx.Select(x < _EXP_ZERO, _constant(_EXP_ZERO, x), x))
    shifted = name(x * _LOG2_E + _ROUND_TO_EXPONENT)
    r = _remainder(name, x, name(shifted - _ROUND_TO_EXPONENT))
    return _polynomial((*_EXP, 1.0, 1.0), r) * _as_exponent(shifted)


@_expands("graphopt.sigmoid")
def _(name: Name, x: tirx.Var) -> Any:
    """1 / (1 + 2**k * e**r), 2**k as in `exp_of_negative`: here it may be infinite too, k = 128."""
    limited = name(_limit(-x, _EXP_ZERO, _EXP_INFINITE))
    shifted = name(limited * _LOG2_E + _ROUND_TO_EXPONENT)
    r = _remainder(name, limited, name(shifted - _ROUND_TO_EXPONENT))
    value = 1.0 / (_polynomial((*_EXP, 1.0, 1.0), r) * _as_exponent(shifted) + 1.0)
    return tirx.Select(tirx.isnan(x), x, value)


@_expands("graphopt.tanh")
def _(name: Name, x: tirx.Var) -> Any:
    """tanh(x) = m / (m + 2) with m = e**2x - 1 = 2**k * (e**r - 1) + (2**k - 1).

    This m keeps its precision where x is small.
    """
    k, r = _reduce(name, name(_limit(x * 2.0, -20.0, 20.0)))
    power = name(_power_of_2(k))
    m = name(_exp_minus_1(r) * power + (power - 1.0))
    return tirx.Select(tirx.isnan(x), x, m / (m + 2.0))


@_expands("graphopt.erf")
def _(name: Name, x: tirx.Var) -> Any:
    size = name(_limit(tirx.Select(x < 0.0, -x, x), 0.0, 4.0))
    k, r = _reduce(name, name(_polynomial(_LOG_ERFC, size)))  # between -19 and 0
    tail = name(1.0 - (_exp_minus_1(r) + 1.0) * _power_of_2(k))
    far = tirx.Select(x < 0.0, -tail, tail)
    near = _polynomial(_ERF, name(size * size)) * x
    return tirx.Select(tirx.isnan(x), x, tirx.Select(size < 0.9, near, far))


@_expands("graphopt.atan")
def _(name: Name, x: tirx.Var) -> Any:
    """atan(x) = pi / 4 + atan((x - 1) / (x + 1)) = pi / 2 - atan(1 / x) where x is large."""
    size = name(tirx.Select(x < 0.0, -x, x))
    large, small = size > 2.414213562, size <= 0.4142135624
    over = name(tirx.Select(large, -1.0 / size, (size - 1.0) / (size + 1.0)))
    z = name(tirx.Select(small, x, over))
    square = name(z * z)
    near = name(_polynomial(_ATAN, square) * square * z + z)
    far = name(tirx.Select(large, near + math.pi / 2, near + math.pi / 4))
    return tirx.Select(small, near, tirx.Select(x < 0.0, -far, far))


@_expands("graphopt.maximum")
def _(name: Name, a: tirx.Var, b: tirx.Var) -> Any:
    return tirx.Select(tirx.any(b > a, tirx.isnan(b)), b, a)


@_expands("graphopt.same_or_nan")
def _(name: Name, x: tirx.Var, y: tirx.Var) -> Any:
    one, zero = (_constant(number, x, "int32") for number in (1, 0))
    return tirx.Select(tirx.any(tirx.EQ(x, y), tirx.isnan(x)), one, zero)


def _call(operator: str, x: Any) -> Any:
    return tirx.call_intrin(x.ty.dtype, operator, x)


def _constant(value: float, like: Any, dtype: str = "float32") -> Any:
    """A number in as many lanes as another expression."""
    scalar, lanes = tirx.const(value, dtype), like.ty.dtype.lanes
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def _limit(x: Any, low: float, high: float) -> Any:
    """`x` limited to [low, high]; some number in there for NaN."""
    return tirx.max(tirx.min(x, high), low)


def _reduce(name: Name, x: Any) -> tuple[Any, Any]:
    """(k, r) with x = k * ln 2 + r, `k` an int32 and |r| <= ln(2) / 2."""
    shifted = name(x * _LOG2_E + _ROUND)
    whole = name(shifted - _ROUND)
    return name(_bits(shifted, "int32") - _ROUND_BITS), _remainder(name, x, whole)


def _remainder(name: Name, x: Any, whole: Any) -> Any:
    """x - whole * ln 2, to more digits than these have."""
    return name(whole * -_LN2_LOW + (whole * -_LN2_HIGH + x))


def _exp_minus_1(r: Any) -> Any:
    """e**r - 1, |r| <= ln(2) / 2, precise where r is small."""
    return _polynomial(_EXP, r) * (r * r) + r


def _polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
    """Horner's scheme, highest power first."""
    total = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        total = total * x + coefficient
    return total


def _as_exponent(shifted: Any) -> Any:
    """2**k as float32 of k + _ROUND_TO_EXPONENT: 0 for k = -127, infinite for 128."""
    return _bits(_bits(shifted, "int32") << 23, "float32")


def _power_of_2(k: Any) -> Any:
    """2**k as float32, k in [-126, 127]."""
    return _bits((k + 127) << 23, "float32")


def _bits(x: Any, dtype: str) -> Any:
    """The bits of `x` seen as another 32-bit type, lane by lane."""
    lanes = x.ty.dtype.lanes
    return tirx.reinterpret(dtype if lanes == 1 else f"{dtype}x{lanes}", x)
