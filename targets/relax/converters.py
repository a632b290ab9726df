"""Which function lowers which op, for each kind of target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from graphopt.ir.graph import Node
from graphopt.ops import DOMAIN as FUSED

if TYPE_CHECKING:
    from tvm import relax

    from graphopt.targets.relax.lowering import Lowering

Converter = Callable[["Lowering", Node], "relax.Expr | Sequence[relax.Expr]"]

_CONVERTERS: dict[tuple[str, str, str], Converter] = {}


def lowers(
    *ops: str, domain: str = "", target: str | None = None
) -> Callable[[Converter], Converter]:
    """Register the converter of ops. It returns the node's output, or a sequence of them.

    Args:
        target: the kind of target that it is for, before one that is for any. Left out, it is for
            any, except that fused ops have kernels of one target, which is the CPU then.
    """
    if target is None:
        target = "cpu" if domain == FUSED else ""

    def register(converter: Converter) -> Converter:
        for op in ops:
            key = target, domain, op
            assert key not in _CONVERTERS, f"two converters for {domain}::{op}"
            _CONVERTERS[key] = converter
        return converter

    return register


def converter_of(op_type: str, domain: str = "", target: str = "cpu") -> Converter | None:
    """What lowers this op for a kind of target, if anything does."""
    from graphopt.targets.relax import ops  # noqa: F401  (importing registers the converters)

    general = _CONVERTERS.get(("", domain, op_type))
    return _CONVERTERS.get((target, domain, op_type), general)


def has_converter(op_type: str, domain: str = "", target: str = "cpu") -> bool:
    """True if some converter lowers this op for a kind of target."""
    return converter_of(op_type, domain, target) is not None
