"""The elementary functions of `targets.kernels.elementary` as CUDA's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tvm import tirx
from tvm.tirx.op import register_intrin_lowering

from graphopt.targets.kernels import elementary  # noqa: F401  (declares the operators)


def _native(function: str) -> Callable[[Any], Any]:
    """Calls `function`, once a lane where the operand is a vector."""
    return lambda call: _called(function, call.args[0])


def _called(function: str, x: Any) -> Any:
    return tirx.call_pure_extern(str(x.ty.dtype), function, x)


def _sigmoid(call: Any) -> Any:
    x = call.args[0]
    one = tirx.const(1, str(x.ty.dtype))
    return one / (one + _called("expf", -x))


@cache
def register() -> None:
    """Have them used where code for CUDA is generated."""
    for name, function in (("exp", "expf"), ("tanh", "tanhf"), ("erf", "erff"), ("atan", "atanf")):
        register_intrin_lowering(f"graphopt.{name}", "cuda", f=_native(function), level=11)
    register_intrin_lowering("graphopt.sigmoid", "cuda", f=_sigmoid, level=11)
