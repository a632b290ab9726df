"""Cast, CastLike and BitCast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax, te

from graphopt.ir.graph import Node
from graphopt.targets.relax import scalar
from graphopt.targets.relax.lowering import Lowering, compute, lowers


def _convert(lower: Lowering, node: Node, function: Callable[[Any, str], Any]) -> relax.Expr:
    source, dtype = node.inputs[0], lower.checked_dtype(node.output.dtype)
    assert source is not None
    if lower.checked_dtype(source.dtype) == dtype:
        return lower.expr(source)
    shape = lower.shape(node.output)

    def emit(x: te.Tensor) -> te.Tensor:
        return compute(shape, lambda *i: function(x(*i), dtype), name="cast")

    return lower.te(emit, lower.expr(source))


@lowers("Cast", "CastLike")
def _cast(lower: Lowering, node: Node) -> relax.Expr:
    return _convert(lower, node, scalar.cast)


@lowers("BitCast")
def _bitcast(lower: Lowering, node: Node) -> relax.Expr:
    source = node.inputs[0]
    assert source is not None
    widths = [max(8, scalar.bits(lower.checked_dtype(v.dtype))) for v in (source, node.output)]
    if widths[0] != widths[1]:
        raise lower.unsupported(f"{source.dtype} and {node.output.dtype} differ in width")
    return _convert(lower, node, scalar.bitcast)
