"""Attention, by the CPU kernel for short sequences."""

from __future__ import annotations

from tvm import relax

from graphopt.ir.graph import Node, Value
from graphopt.ops.attention import DOMAIN, OP_TYPE, Attention
from graphopt.ops.attention_body import SOFTMAX
from graphopt.targets.cpu.kernels.attention import attention
from graphopt.targets.cpu.kernels.attention_shares import Axes
from graphopt.targets.cpu.kernels.attention_tiles import attention_tiles
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
    shape = (what.heads, what.dim, what.scale, what.columns, widths, bias)
    lengths = [length if isinstance(length, int) else None for length in (queries, keys)]
    activation = None if what.activation == SOFTMAX else what.activation
    words = node.attrs.get("words")
    make, how = (attention, node.attrs["lanes"]) if words is None else (attention_tiles, words)
    kernel = make(*shape, *lengths, how, what.guarded, activation, factor)
    return lower.kernel(kernel, operands, [(lower.shape(node.output), "float32")])[0]


def _wide(lower: Lowering, value: Value | None, operands: list[relax.Expr]) -> Axes | None:
    """Which axes of [b, heads, t, s] the value has, which becomes an operand; None for no value."""
    if value is None:
        return None
    dims = [*(1,) * (4 - len(value.tensor.dims)), *value.tensor.dims]
    operands.append(lower.reshape(lower.expr(value), [lower.dim(dim) for dim in dims]))
    b, h, t, s = (dim != 1 for dim in dims)
    return b, h, t, s
