"""Casts that change nothing."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.ir.types import dtype_to_numpy, dtype_to_onnx, is_integer
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

x, y = var("x"), var("y")

_MANTISSA = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
_EXPONENT = {"float16": 5, "bfloat16": 8, "float32": 8, "float64": 11}


@rule(op.CastLike(x, y))
def cast_like_to_cast(rw: Rewriter, x: Value, y: Value) -> Value:
    """CastLike(x, y) -> Cast(x, to=dtype of y)"""
    return rw.op.Cast(x, to=dtype_to_onnx(y.dtype))


@rule(op.Cast(x))
def cast_to_same(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch:
    """Cast(x: T, to=T) -> x"""
    return x if x.dtype == node.output.dtype else NoMatch("it changes the dtype")


@rule(op.Cast(op.Cast(x).named("y").shared()))
def cast_of_exact_cast(rw: Rewriter, x: Value, y: Value, node: Node) -> Value | NoMatch:
    """Cast(Cast(x)) -> Cast(x), if the inner one keeps every number"""
    if not keeps_every_number(x.dtype, y.dtype):
        return NoMatch(f"{x.dtype} to {y.dtype} may lose something")
    return rw.op.Cast(x, to=node.attr("to"))


def keeps_every_number(source: str, target: str) -> bool:
    """True if every number of dtype `source` is one of `target`."""
    if source == "bool":
        return is_integer(target) or target in _MANTISSA
    if is_integer(source) and dtype_to_numpy(source).kind in "iu":
        limits = np.iinfo(dtype_to_numpy(source))
        if target in _MANTISSA:
            return bool(limits.bits - (limits.min < 0) <= _MANTISSA[target])
        if is_integer(target) and dtype_to_numpy(target).kind in "iu":
            wider = np.iinfo(dtype_to_numpy(target))
            return bool(wider.min <= limits.min and limits.max <= wider.max)
        return False
    if source in _MANTISSA and target in _MANTISSA:
        wide_enough = _EXPONENT[source] <= _EXPONENT[target]
        return wide_enough and _MANTISSA[source] <= _MANTISSA[target]
    return False


class SimplifyCasts(RewritePass):
    """Drops casts to the dtype that a value already has, and lossless detours through another.

    Needs a dtype on the way that holds every value of the one before. int32 to int64 to float32 is
    int32 to float32; int64 to float32 to int64 stays, because float32 has no room for large ids.
    CastLike becomes Cast. Fidelity: exact.

    Before:
        (int32[N] ids, float[N] z) => (float[N] y) {
            a = Cast<to=7>(ids)
            b = Cast<to=7>(a)
            y = CastLike(b, z)
        }

    After:
        (int32[N] ids, float[N] z) => (float[N] y) {
            y = Cast<to=1>(ids)
        }
    """

    name = "simplify-casts"
    fidelity = Fidelity.EXACT
    rules = (cast_like_to_cast, cast_to_same, cast_of_exact_cast)
