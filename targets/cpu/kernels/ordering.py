"""How sorting kernels compare elements, as TIR expressions.

On floats TVM's `!=` is an ordered comparison, false where an operand is NaN, and it rewrites
`Not(a == b)` to that; so NaN is always asked for by name.
"""

from typing import Any

from tvm import tirx


def precedes(a: Any, b: Any, dtype: str, descending: bool) -> Any:
    """Whether `a` comes before `b`; NaN counts as larger than every number, as NumPy sorts it."""
    if "float" not in dtype:
        return a > b if descending else a < b
    a, b = _comparable(a, dtype), _comparable(b, dtype)
    if descending:
        a, b = b, a
    return tirx.any(tirx.all(tirx.isnan(b), tirx.Not(tirx.isnan(a))), a < b)


def is_nonzero(x: Any, dtype: str) -> Any:
    """Whether `x` is true as a condition; NaN is."""
    if dtype == "bool":
        return x
    if "float" not in dtype:
        return x != tirx.const(0, dtype)
    x = _comparable(x, dtype)
    return tirx.any(tirx.isnan(x), x != tirx.const(0, x.ty.dtype))


def _comparable(x: Any, dtype: str) -> Any:
    return x if dtype == "float64" else tirx.Cast("float32", x)
