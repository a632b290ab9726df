"""Elementary functions as expressions that LLVM turns into vector code.

`T.exp` and `T.tanh` become calls of the scalar expf and tanhf, one a lane.  What follows is made of
additions, multiplications, comparisons and shifts only.  The errors quoted are the largest over all
normal float32 results, against float64, on a machine with fused multiply-add.

Every function is straight-line code, one `Let` for each intermediate value: it is computed once, an
argument may itself hold named values without defining them twice, and TVM, which rewrites floats as
if they were real numbers, cannot fold (x + c) - c into x.
"""

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 0.693359375  # 9 significant bits: its product with a small integer is exact
_LN2_LOW = -2.12194440e-4
_ROUND = 12582912.0  # 1.5 * 2**23: adding it leaves the nearest integer in the low mantissa bits
_ROUND_BITS = 0x4B400000
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


Name = Callable[[Any], tirx.Var]


def straight(steps: Callable[[Name], Any]) -> Any:
    """The result of `steps(name)`, in which `name(value)` gives an expression a name.

    The names of an argument are moved in front of those that use it: passes of TVM take time
    exponential in the depth to which the values of `Let` hold further `Let`s.  So an expression
    made by a function of this file should be named before it is used in another.
    """
    named: list[tuple[tirx.Var, Any]] = []

    def name(value: Any) -> tirx.Var:
        while isinstance(value, tirx.Let):
            named.append((value.var, value.value))
            value = value.body
        named.append((tirx.Var("t", value.ty), value))
        return named[-1][0]

    result = steps(name)
    for variable, value in reversed(named):
        result = tirx.Let(variable, value, result)
    return result


def fast_exp(x):
    """e**x of a float32 expression; 1.1 ulp, exact at +-infinity, NaN for NaN, gradual underflow.

    exp(x) = 2**k * exp(r) with k = round(x / ln 2).  2**k is applied in two factors, because
    neither 2**128 nor 2**-150 is a float32 while their products with exp(r) may be.
    """

    def steps(name):
        k, r = _reduce(name, clip(x, -104.0, 88.8))
        half = name(T.shift_right(k, T.int32(1)))
        return (_exp_minus_1(r) + T.float32(1)) * _power_of_2(half) * _power_of_2(k - half)

    return straight(steps)


def sigmoid(x):
    """1 / (1 + e**-x) of a float32 expression; 2.5 ulp, below -88.7 it is 0."""

    def steps(name):
        e = name(fast_exp(T.float32(0) - name(x)))
        return T.float32(1) / (T.float32(1) + e)

    return straight(steps)


def tanh(x):
    """Hyperbolic tangent of a float32 expression; 2.6 ulp, +-1 at +-infinity.

    tanh(x) = m / (m + 2) with m = e**2x - 1 = 2**k * (e**r - 1) + (2**k - 1), which keeps its
    precision where x is small.
    """

    def steps(name):
        k, r = _reduce(name, clip(name(x) * T.float32(2), -20.0, 20.0))
        power = name(_power_of_2(k))
        m = name(_exp_minus_1(r) * power + (power - T.float32(1)))
        return m / (m + T.float32(2))

    return straight(steps)


def erf(x):
    """Error function of a float32 expression; 2.8 ulp, +-1 at +-infinity."""

    def steps(name):
        signed, zero = name(x), T.float32(0)
        size = name(clip(T.Select(signed < zero, zero - signed, signed), 0.0, 4.0))
        square = name(size * size)
        tail = name(T.float32(1) - name(fast_exp(_polynomial(_LOG_ERFC, size))))
        return T.Select(
            size < T.float32(0.9),
            _polynomial(_ERF, square) * signed,
            T.Select(signed < zero, zero - tail, tail),
        )

    return straight(steps)


def clip(x, low: float, high: float):
    """A float32 expression limited to [low, high]; NaN stays NaN, unlike under T.min and T.max."""

    def steps(name):
        given = name(x)
        above = name(T.Select(given < T.float32(low), T.float32(low), given))
        return T.Select(above > T.float32(high), T.float32(high), above)

    return straight(steps)


def _reduce(name: Name, x):
    """Names (k, r) with x = k * ln 2 + r, `k` an int32 and |r| <= ln(2) / 2."""
    given = name(x)
    shifted = name(given * T.float32(_LOG2_E) + T.float32(_ROUND))
    whole = name(shifted - T.float32(_ROUND))
    r = name(whole * T.float32(-_LN2_LOW) + (whole * T.float32(-_LN2_HIGH) + given))
    return name(T.reinterpret("int32", shifted) - T.int32(_ROUND_BITS)), r


def _exp_minus_1(r):
    """e**r - 1 of a name, |r| <= ln(2) / 2, precise where r is small."""
    return _polynomial(_EXP, r) * (r * r) + r


def _polynomial(coefficients: tuple[float, ...], x):
    """Horner's scheme, highest power first."""
    total = T.float32(coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + T.float32(coefficient)
    return total


def _power_of_2(k):
    """2**k as float32 of an int32 expression in [-126, 127]."""
    return T.reinterpret("float32", T.shift_left(k + T.int32(127), T.int32(23)))
