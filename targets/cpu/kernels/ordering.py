"""The order that sorting kernels put elements in, as a TIR expression."""

from tvm import tirx


def precedes(a, b, dtype: str, descending: bool):
    """Whether `a` comes before `b`; NaN counts as larger than every number, as NumPy sorts it."""
    if "float" not in dtype:
        return a > b if descending else a < b
    nan_a, nan_b = tirx.isnan(a), tirx.isnan(b)
    if descending:
        return tirx.any(tirx.all(nan_a, tirx.Not(nan_b)), a > b)
    return tirx.any(tirx.all(nan_b, tirx.Not(nan_a)), a < b)
