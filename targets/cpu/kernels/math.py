"""Elementary functions as float32 expressions that LLVM turns into vector code.

`T.exp` and `T.tanh` become calls of the scalar expf and tanhf, one a lane.  What follows is made of
additions, multiplications, comparisons and shifts only.  The errors quoted are the largest over all
float32 arguments against float64, with fused multiply-add.  Arguments of another float type are
computed through float32 (half precision) or by the scalar function (float64).
"""

from tvm import tirx
from tvm.script import tirx as T

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 0.693359375  # 9 significant bits: its product with a small integer is exact
_LN2_LOW = -2.12194440e-4
_ROUND = 12582912.0  # 1.5 * 2**23: adding it leaves the nearest integer in the low mantissa bits
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1)
_EXP_2 = 5.0000001201e-1  # these six: Cephes expf


def _f32(value: float):
    return T.float32(value)


def _let(value, body):
    """`body` of a name for `value`: it is computed once, and TVM cannot fold (x + c) - c to x."""
    name = tirx.Var("t", value.ty)
    return tirx.Let(name, value, body(name))

def _horner(x, coefficients):
    """Polynomial in `x`, highest power first."""
    total = _f32(coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + _f32(coefficient)
    return total


def exp32(x):
    def power(k): return T.reinterpret("float32", T.shift_left(k + T.int32(127), T.int32(23)))
    def scaled(n, shifted, whole):
        def last(r):
            return _let(T.reinterpret("int32", shifted) - T.int32(0x4B400000), lambda k:
             _let(T.shift_right(k, T.int32(1)), lambda half:
            (_horner(r, (*_EXP, _EXP_2)) * (r * r) + r + _f32(1.0)) * power(half) * power(k - half)))
        return _let((n - whole * _f32(_LN2_HIGH)) - whole * _f32(_LN2_LOW), last)
    return _let(T.Select(x > _f32(88.8), _f32(88.8), T.Select(x < _f32(-104.0), _f32(-104.0), x)), lambda n:
        _let(n * _f32(_LOG2_E) + _f32(_ROUND), lambda shifted:
        _let(shifted - _f32(_ROUND), lambda whole: scaled(n, shifted, whole))))
