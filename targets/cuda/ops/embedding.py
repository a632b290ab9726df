"""Embedding bags, looked up and pooled in one launch."""

from __future__ import annotations

from typing import Any

from tvm import relax, te, tirx

from graphopt.ir.graph import Node
from graphopt.ops.embedding_bag import DOMAIN, EmbeddingBag
from graphopt.targets.cuda.kernels.embedding_bag import embedding_bag, fixed_bag
from graphopt.targets.cuda.lowering import ID_ERROR, CudaLowering, lowers
from graphopt.targets.kernels.pooling import Plan, Pooling
from graphopt.targets.relax.operands import describe, tensor_input


@lowers("EmbeddingBag", domain=DOMAIN)
def _embedding_bag(lower: CudaLowering, node: Node) -> relax.Expr:
    table, ids, offsets = tensor_input(node, 0), tensor_input(node, 1), node.input(2)
    rows, dim = table.tensor.dims
    if not (isinstance(rows, int) and isinstance(dim, int)):
        raise lower.unsupported(f"the size of its table ({table.type}) is known only at run time")
    bag = EmbeddingBag.of(node)
    try:
        pooling = Pooling(
            bag.mode,
            weighted=node.input(3) is not None,
            padding_idx=bag.padding_idx,
            empty=bag.empty,
            oob="zero" if lower.oob == "zero" else "clamp",
        )
        plan = Plan(rows, dim, table.dtype, ids.dtype, pooling)
    except ValueError as error:  # how kernels refuse what they have no code for
        raise lower.unsupported(str(error)) from None
    if rows == 0:
        raise lower.unsupported("its table has no rows")
    lower.demand_ids(node, ids, rows)
    if offsets is None:
        length = ids.tensor.dims[1]
        kernel = fixed_bag(plan, length if isinstance(length, int) else None)
    else:
        _demand_offsets(lower, node)
        kernel = embedding_bag(plan, offsets.dtype, bag.include_last_offset)
    read = [lower.expr(value) for value in node.inputs if value is not None]
    return lower.kernel(kernel, read, [(lower.shape(node.output), table.dtype)])[0]


def _demand_offsets(lower: CudaLowering, node: Node) -> None:
    """Report offsets that decrease or leave the ids."""
    offsets, ids = tensor_input(node, 2), tensor_input(node, 1)
    if lower.oob != "error":
        return
    (count,), (end,) = lower.shape(offsets), lower.shape(ids)

    def holds(k: Any, o: te.Tensor) -> Any:
        at = o(k).astype("int64")
        following = o(tirx.min(k + 1, o.shape[0] - 1)).astype("int64")
        return tirx.all(at >= 0, at <= following, at <= end)

    message = f"{ID_ERROR}{describe(node)} (offsets decrease or leave the ids)"
    lower.demand(holds, [lower.expr(offsets)], count, message)
