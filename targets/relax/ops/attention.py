"""Attention, by the CPU kernel for short sequences."""

from __future__ import annotations

from tvm import relax

from graphopt.ir.graph import Node, Value
from graphopt.ops.attention import DOMAIN, OP_TYPE, Attention
from graphopt.ops.attention_body import SOFTMAX
from graphopt.targets.cpu.kernels.attention import Axes, attention
from graphopt.targets.relax.lowering import Lowering, lowers


@lowers(OP_TYPE, domain=DOMAIN)
def _attention(lower: Lowering, node: Node) -> relax.Expr:
    q, k, v = node.inputs[:3]
    what = Attention.of(node)
    assert q is not None and k is not None and v is not None
    queries, keys = q.tensor.dims[1], k.tensor.dims[1]
    widths = tuple(value.tensor.dims[2] for value in (q, k, v))
    operands = [lower.expr(value) for value in (q, k, v)]
    bias, factor = (_wide(lower, node.input(slot), operands) for slot in (3, 4))
    kernel = attention(
        what.heads,
        what.dim,
        what.scale,
        what.columns,
        widths,
        bias,
        queries if isinstance(queries, int) else None,
        keys if isinstance(keys, int) else None,
        node.attrs["lanes"],
        what.guarded,
        None if what.activation == SOFTMAX else what.activation,
        factor,
    )
    return lower.kernel(kernel, operands, [(lower.shape(node.output), "float32")])[0]


def _wide(lower: Lowering, value: Value | None, operands: list[relax.Expr]) -> Axes | None:
    """Which axes of [b, heads, t, s] the value has, which becomes an operand; None for no value."""
    if value is None:
        return None
    dims = [*(1,) * (4 - len(value.tensor.dims)), *value.tensor.dims]
    operands.append(lower.reshape(lower.expr(value), [lower.dim(dim) for dim in dims]))
    b, h, t, s = (dim != 1 for dim in dims)
    return b, h, t, s
