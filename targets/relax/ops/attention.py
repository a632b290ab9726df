"""Attention, by the CPU kernel for short sequences."""

from __future__ import annotations

from tvm import relax

from graphopt.ir.graph import Node
from graphopt.ops.attention import DOMAIN, OP_TYPE, Attention
from graphopt.targets.cpu.kernels.attention import attention
from graphopt.targets.relax.lowering import Lowering, lowers


@lowers(OP_TYPE, domain=DOMAIN)
def _attention(lower: Lowering, node: Node) -> relax.Expr:
    q, k, v = node.inputs[:3]
    bias, what = node.input(3), Attention.of(node)
    assert q is not None and k is not None and v is not None
    queries, keys = q.tensor.dims[1], k.tensor.dims[1]
    widths = tuple(value.tensor.dims[2] for value in (q, k, v))
    operands = [lower.expr(value) for value in (q, k, v)]
    kept = None
    if bias is not None:
        dims = [*(1,) * (4 - len(bias.tensor.dims)), *bias.tensor.dims]
        kept = tuple(dim != 1 for dim in dims)
        operands.append(lower.reshape(lower.expr(bias), [lower.dim(dim) for dim in dims]))
    kernel = attention(
        what.heads,
        what.dim,
        what.scale,
        what.columns,
        widths,
        kept,
        queries if isinstance(queries, int) else None,
        keys if isinstance(keys, int) else None,
        node.attrs["lanes"],
        what.guarded,
    )
    return lower.kernel(kernel, operands, [(lower.shape(node.output), "float32")])[0]
