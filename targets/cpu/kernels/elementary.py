"""Elementary functions as expressions that LLVM turns into vector code.

`T.exp` and `T.tanh` become calls of the scalar expf and tanhf, one a lane.  What follows is made of
additions, multiplications, comparisons and shifts only.  The errors quoted are the largest over all
normal float32 results, against float64, on a machine with fused multiply-add.

Every intermediate value has a name (`Let`): it is computed once, an argument may itself hold named
values without defining them twice, and TVM, which rewrites floats as if they were real numbers,
cannot fold (x + c) - c into x.
"""

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


def fast_exp(x):
    """e**x of a float32 expression; 1.1 ulp, exact at +-infinity, NaN for NaN, gradual underflow.

    exp(x) = 2**k * exp(r) with k = round(x / ln 2).  2**k is applied in two factors, because
    neither 2**128 nor 2**-150 is a float32 while their products with exp(r) may be.
    """
    (r,), (k, half) = _names("float32", 1), _names("int32", 2)
    value = _where(
        [(half, T.shift_right(k, T.int32(1)))],
        (_exp_minus_1(r) + T.float32(1)) * _power_of_2(half) * _power_of_2(k - half),
    )
    return _reduced(clip(x, -104.0, 88.8), k, r, value)


def sigmoid(x):
    """1 / (1 + e**-x) of a float32 expression; 2.5 ulp, below -88.7 it is 0."""
    return T.float32(1) / (T.float32(1) + fast_exp(T.float32(0) - x))


def tanh(x):
    """Hyperbolic tangent of a float32 expression; 2.6 ulp, +-1 at +-infinity.

    tanh(x) = m / (m + 2) with m = e**2x - 1 = 2**k * (e**r - 1) + (2**k - 1), which keeps its
    precision where x is small.
    """
    (r, power, m), (k,) = _names("float32", 3), _names("int32", 1)
    value = _where(
        [
            (power, _power_of_2(k)),
            (m, _exp_minus_1(r) * power + (power - T.float32(1))),
        ],
        m / (m + T.float32(2)),
    )
    return _reduced(clip(x * T.float32(2), -20.0, 20.0), k, r, value)


def erf(x):
    """Error function of a float32 expression; 2.8 ulp, +-1 at +-infinity."""
    x_, size, square, tail = _names("float32", 4)
    return _where(
        [
            (x_, x),
            (size, clip(T.Select(x_ < T.float32(0), T.float32(0) - x_, x_), 0.0, 4.0)),
            (square, size * size),
            (tail, T.float32(1) - fast_exp(_polynomial(_LOG_ERFC, size))),
        ],
        T.Select(
            size < T.float32(0.9),
            _polynomial(_ERF, square) * x_,
            T.Select(x_ < T.float32(0), T.float32(0) - tail, tail),
        ),
    )


def clip(x, low: float, high: float):
    """A float32 expression limited to [low, high]; NaN stays NaN, unlike under T.min and T.max."""
    (x_,) = _names("float32", 1)
    below = T.Select(x_ < T.float32(low), T.float32(low), x_)
    return _where([(x_, x)], T.Select(x_ > T.float32(high), T.float32(high), below))


def _reduced(x, k, r, result):
    """`result` with x = k * ln 2 + r, `k` an int32 and |r| <= ln(2) / 2."""
    inside, shifted, whole = _names("float32", 3)
    return _where(
        [
            (inside, x),
            (shifted, inside * T.float32(_LOG2_E) + T.float32(_ROUND)),
            (whole, shifted - T.float32(_ROUND)),
            (r, whole * T.float32(-_LN2_LOW) + (whole * T.float32(-_LN2_HIGH) + inside)),
            (k, T.reinterpret("int32", shifted) - T.int32(_ROUND_BITS)),
        ],
        result,
    )


def _exp_minus_1(r):
    """e**r - 1 of a name, |r| <= ln(2) / 2, precise where r is small."""
    return _polynomial(_EXP, r) * (r * r) + r


def _names(dtype: str, count: int) -> list[tirx.Var]:
    return [tirx.Var("t", dtype) for _ in range(count)]


def _where(bindings, result):
    """`result` with each name standing for its value; a value may use the names before it."""
    for name, value in reversed(bindings):
        result = tirx.Let(name, value, result)
    return result


def _polynomial(coefficients, x):
    """Horner's scheme, highest power first."""
    total = T.float32(coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + T.float32(coefficient)
    return total


def _power_of_2(k):
    """2**k as float32 of an int32 expression in [-126, 127]."""
    return T.reinterpret("float32", T.shift_left(k + T.int32(127), T.int32(23)))
