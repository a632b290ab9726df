"""Scalar expressions with ONNX's meaning, where the compiler's own differ from it.

float16 and bfloat16 are only stored: arithmetic happens in float32 and is rounded once per op,
which is what NumPy and ONNX Runtime do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from graphopt.targets.kernels import elementary

Scalar = Any

_BITS = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64, "bool": 1}
_INF = float("inf")


def dtype_of(x: Scalar) -> str:
    """The dtype of an expression."""
    return str(x.ty.dtype)


def is_float(dtype: str) -> bool:
    """True for floating dtypes of any width."""
    return "float" in dtype


def is_signed(dtype: str) -> bool:
    """True for signed integers."""
    return dtype.startswith("int")


def bits(dtype: str) -> int:
    """The width of a dtype."""
    return _BITS.get(dtype) or int(dtype.lstrip("uint"))


def working_dtype(dtype: str) -> str:
    """The dtype that arithmetic on `dtype` is done in."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def const(value: Any, dtype: str) -> Scalar:
    """A literal."""
    return tirx.const(value, dtype)


def lowest(dtype: str) -> Any:
    """The least value: minus infinity for floats."""
    if is_float(dtype):
        return -_INF
    return 0 if not is_signed(dtype) else -(1 << (bits(dtype) - 1))


def highest(dtype: str) -> Any:
    """The greatest value: infinity for floats."""
    if is_float(dtype):
        return _INF
    return (1 << (bits(dtype) - (1 if is_signed(dtype) else 0))) - 1


# ------------------------------------------------------------------------ casts


def cast(x: Scalar, dtype: str) -> Scalar:
    """`x` as `dtype`, as ONNX Cast: floats to integers are cut off, anything but zero is true.

    A NaN, or a float outside the range of an integer dtype, gives an unspecified number.
    """
    source = dtype_of(x)
    if source == dtype:
        return x
    if dtype == "bool":
        return tirx.NE(cast(x, working_dtype(source)), const(0, working_dtype(source)))
    if is_float(source) and not is_float(dtype):
        return _float_to_int(x.astype(working_dtype(source)), dtype)
    if dtype in ("float16", "bfloat16"):
        return _to_half(x, source, dtype)
    return x.astype(dtype)


def _float_to_int(x: Scalar, dtype: str) -> Scalar:
    if dtype in ("int32", "int64"):
        return x.astype(dtype)
    if dtype == "uint64":
        # LLVM converts to signed; the upper half is reached by moving it down and up again.
        limit = const(2.0**63, dtype_of(x))
        upper = (x - limit).astype("int64").astype("uint64") + (const(1, "uint64") << 63)
        return tirx.Select(x >= limit, upper, x.astype("int64").astype("uint64"))
    wider = "int64" if dtype == "uint32" else "int32"
    return x.astype(wider).astype(dtype)


def _to_half(x: Scalar, source: str, dtype: str) -> Scalar:
    wide = source in ("float64", "int64", "uint64", "int32", "uint32")
    value = _rounded_to_odd(x.astype("float64")) if wide else x.astype("float32")
    if dtype == "float16":
        return value.astype(dtype)
    # TVM cuts the lower half off where IEEE rounds to nearest even; NaN must not round to infinity.
    single, word = tirx.Var("single", "float32"), tirx.Var("word", "uint32")
    last = tirx.bitwise_and(word >> const(16, "uint32"), const(1, "uint32"))
    nearest = word + const(0x7FFF, "uint32") + last
    upper = tirx.Select(tirx.isnan(single), word | const(0x400000, "uint32"), nearest)
    upper = tirx.bitwise_and(upper, const(0xFFFF0000, "uint32"))
    rounded = tirx.reinterpret("float32", upper).astype(dtype)
    return tirx.Let(single, value, tirx.Let(word, tirx.reinterpret("uint32", single), rounded))


def bitcast(x: Scalar, dtype: str) -> Scalar:
    """The bits of `x` as another dtype of the same width."""
    source = dtype_of(x)
    if source == dtype or "bool" in (source, dtype):
        return cast(x, dtype)
    # TVM computes bfloat16 in float32, so its bits are reached through the upper half of one.
    if dtype == "bfloat16":
        wide = bitcast(x, "uint16").astype("uint32") << const(16, "uint32")
        return tirx.reinterpret("float32", wide).astype(dtype)
    if source == "bfloat16":
        wide = tirx.reinterpret("uint32", x.astype("float32"))
        return bitcast((wide >> const(16, "uint32")).astype("uint16"), dtype)
    return tirx.reinterpret(dtype, x)


def disguised(x: Scalar) -> Scalar:
    """`x`, so that the compiler does not see that another operand is the same.

    It takes `x - x` for 0 and `x == x` for true, which they are not for NaN.
    """
    word = {"float32": "uint32", "float64": "uint64"}.get(dtype_of(x))
    return x if word is None else tirx.reinterpret(dtype_of(x), tirx.reinterpret(word, x))


def _rounded_to_odd(x: Scalar) -> Scalar:
    """float64 as float32 with an odd last bit where inexact, so that rounding again is exact."""
    single = x.astype("float32")
    word = tirx.reinterpret("uint32", single)
    back = single.astype("float64")
    outward = (tirx.abs(x) > tirx.abs(back)).astype("uint32")
    odd = word + outward * const(2, "uint32") - const(1, "uint32")
    even = tirx.EQ(tirx.bitwise_and(word, const(1, "uint32")), const(0, "uint32"))
    finite = tirx.abs(x) <= const(3.0e38, "float64")
    inexact = tirx.all(finite, tirx.NE(back, x), even)
    return tirx.reinterpret("float32", tirx.Select(inexact, odd, word))


# ------------------------------------------------------------ integer arithmetic


def wrapping(function: Callable[[Scalar, Scalar], Scalar], a: Scalar, b: Scalar) -> Scalar:
    """A sum, difference or product of integers, modulo their width.

    TVM takes it that those of 32 bits and more never overflow, unsigned ones too, and that casts
    lose nothing; it knows no bounds of numbers of 64 bits. So wider ones are computed, of which
    LLVM makes narrow ones again.
    """
    dtype = dtype_of(a)
    wider = "int128" if bits(dtype) == 64 else "int64"
    exact = function(a.astype(wider), b.astype(wider))
    if wider == "int64":
        least, mask = lowest(dtype), (1 << bits(dtype)) - 1
        exact = tirx.bitwise_and(exact - const(least, wider), const(mask, wider))
        exact = exact + const(least, wider)
    return exact.astype(dtype)


def divide(a: Scalar, b: Scalar) -> Scalar:
    """ONNX Div: integers round towards zero; a division of integers by zero gives 0."""
    dtype = dtype_of(a)
    if is_float(dtype):
        return a / b
    divisor, special = _safe_divisor(a, b)
    return special(tirx.truncdiv(a, divisor), -a if is_signed(dtype) else a)


def remainder(a: Scalar, b: Scalar, c_sign: bool) -> Scalar:
    """ONNX Mod: the sign of the result is that of `b`, or of `a` if `c_sign`; x mod 0 gives 0."""
    dtype = dtype_of(a)
    if is_float(dtype):
        result = libm("fmod", a, b)
        moved = result + b
    else:
        divisor, special = _safe_divisor(a, b)
        result = special(tirx.truncmod(a, divisor), const(0, dtype))
        moved = result + b
    if c_sign or not (is_signed(dtype) or is_float(dtype)):
        return result
    zero = const(0, dtype)
    opposite = differ(result < zero, b < zero)
    return tirx.Select(tirx.all(tirx.NE(result, zero), opposite), moved, result)


def _safe_divisor(a: Scalar, b: Scalar) -> Any:
    """A divisor that never traps, and how to correct the result for the true one.

    The processor stops the program on x / 0 and on the least integer / -1.
    """
    dtype = dtype_of(a)
    zero, one = const(0, dtype), const(1, dtype)
    traps = tirx.EQ(b, zero)
    if not is_signed(dtype):
        return tirx.Select(traps, one, b), lambda result, _: tirx.Select(traps, zero, result)
    minus = tirx.EQ(b, const(-1, dtype))
    divisor = tirx.Select(tirx.any(traps, minus), one, b)

    def special(result: Scalar, by_minus_one: Scalar) -> Scalar:
        return tirx.Select(traps, zero, tirx.Select(minus, by_minus_one, result))

    return divisor, special


def integer_power(a: Scalar, b: Scalar) -> Scalar:
    """`a ** b` in the integers (modulo their width), by squaring; exponents from 0 to 63.

    A negative exponent gives the truncated fraction: 0, or +-1 for a base of +-1.
    """
    dtype = dtype_of(a)
    result, square = const(1, dtype), a
    exponent = b.astype("int64")
    for k in range(6):
        taken = tirx.bitwise_and(exponent >> const(k, "int64"), const(1, "int64"))
        result = tirx.Select(tirx.NE(taken, const(0, "int64")), result * square, result)
        square = square * square
    unit = tirx.EQ(a * a, const(1, dtype))
    negative = exponent < const(0, "int64")
    return tirx.Select(tirx.all(negative, tirx.Not(unit)), const(0, dtype), result)


def shift(a: Scalar, b: Scalar, left: bool) -> Scalar:
    """ONNX BitShift: a count that is negative or moves all bits out leaves copies of the sign."""
    dtype = dtype_of(a)
    count = b.astype("int64")
    valid = tirx.all(count >= const(0, "int64"), count < const(bits(dtype), "int64"))
    amount = tirx.Select(valid, count, const(0, "int64")).astype(dtype)
    rest = const(0, dtype)
    if is_signed(dtype) and not left:
        rest = tirx.Select(a < rest, const(-1, dtype), rest)
    return tirx.Select(valid, a << amount if left else a >> amount, rest)


# --------------------------------------------------------------- floats and both


def maximum(a: Scalar, b: Scalar) -> Scalar:
    """The greater; NaN if either is."""
    if not is_float(dtype_of(a)):
        return tirx.max(a, b)
    return tirx.Select(tirx.any(a > b, tirx.isnan(a)), a, b)


def minimum(a: Scalar, b: Scalar) -> Scalar:
    """The lesser; NaN if either is."""
    if not is_float(dtype_of(a)):
        return tirx.min(a, b)
    return tirx.Select(tirx.any(a < b, tirx.isnan(a)), a, b)


def differ(a: Scalar, b: Scalar) -> Scalar:
    """Exclusive or of conditions (LLVM rejects what TVM makes of `a != b`)."""
    return tirx.Or(tirx.And(a, tirx.Not(b)), tirx.And(tirx.Not(a), b))


def equal(a: Scalar, b: Scalar) -> Scalar:
    """Equality of numbers or of conditions."""
    return tirx.Not(differ(a, b)) if dtype_of(a) == "bool" else tirx.EQ(a, b)


def absolute(x: Scalar) -> Scalar:
    dtype = dtype_of(x)
    if is_float(dtype):
        return tirx.abs(x)
    return tirx.Select(x < const(0, dtype), -x, x) if is_signed(dtype) else x


def libm(name: str, *args: Scalar) -> Scalar:
    """A function of the C library, of float32 or float64.

    TVM replaces some of these by approximations (erf is off by 1e-5).
    """
    dtype = dtype_of(args[0])
    symbol = name if dtype == "float64" else f"{name}f"
    return tirx.call_pure_extern(dtype, symbol, *args)


def exp(x: Scalar) -> Scalar:
    return elementary.fast_exp(x) if dtype_of(x) == "float32" else tirx.exp(x)


def sigmoid(x: Scalar) -> Scalar:
    if dtype_of(x) == "float32":
        return elementary.sigmoid(x)
    one = const(1.0, dtype_of(x))
    return one / (one + tirx.exp(-x))


def softplus(x: Scalar) -> Scalar:
    """log(1 + exp(x)), without overflow."""
    return maximum(x, const(0.0, dtype_of(x))) + libm("log1p", exp(-tirx.abs(x)))


def erf(x: Scalar) -> Scalar:
    return elementary.erf(x) if dtype_of(x) == "float32" else libm("erf", x)


def atan(x: Scalar) -> Scalar:
    return elementary.atan(x) if dtype_of(x) == "float32" else libm("atan", x)


def tanh(x: Scalar) -> Scalar:
    return elementary.tanh(x) if dtype_of(x) == "float32" else libm("tanh", x)
