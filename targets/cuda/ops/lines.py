"""CumSum, ScatterElements and TopK, parallel along all axes but one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax, tirx

from graphopt.ir.graph import Node
from graphopt.targets.cuda.kernels import lines
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.relax.loops import loops
from graphopt.targets.relax.lowering import Lowering
from graphopt.targets.relax.operands import describe, tensor_input
from graphopt.targets.relax.ops.indexing import fitting
from graphopt.targets.relax.ops.reduce import around_axis
from graphopt.targets.relax.ops.scatter import reduction_of
from graphopt.targets.relax.ops.selection import topk


@lowers("CumSum")
def _cumsum(lower: CudaLowering, node: Node) -> relax.Expr:
    data, dtype = tensor_input(node, 0), lower.checked_dtype(node.output.dtype)
    shape = around_axis(lower, node, data)
    exclusive, reverse = bool(node.attr("exclusive")), bool(node.attr("reverse"))

    def body(x: Any, out: Any) -> None:
        lines.running_sums(x, out, exclusive=exclusive, reverse=reverse)

    (result,) = loops(lower, body, [lower.reshape(lower.expr(data), shape)], [(shape, dtype)])
    return lower.reshape(result, lower.shape(node.output))


@lowers("ScatterElements", "Scatter")
def _scatter_elements(lower: CudaLowering, node: Node) -> relax.Expr:
    data, ids, updates = (tensor_input(node, k) for k in range(3))
    sizes = data.tensor.dims
    axis = node.attr("axis") % len(sizes)
    fits = tirx.all(fitting(lower, node, ids, data, axis), fitting(lower, node, ids, updates, -1))
    lower.demand(lambda k: fits, [], 1, f"{describe(node)}: its indices are larger than its data")
    lower.demand_ids(node, ids, sizes[axis])
    change = reduction_of(lower, node)

    def body(source: Any, indices: Any, changes: Any, out: Any) -> None:
        lines.scatter(source, indices, changes, out, axis, lower.oob, change)

    arguments = [lower.expr(value) for value in (data, ids, updates)]
    return loops(lower, body, arguments, [(lower.shape(data), data.dtype)])[0]


@lowers("TopK")
def _topk(lower: CudaLowering, node: Node) -> list[relax.Expr]:
    return topk(lower, node, _sorted)


def _sorted(
    lower: Lowering, cube: relax.Expr, sizes: Sequence[Any], dtype: str, descending: bool
) -> relax.Expr:
    outer, length, inner = sizes

    def body(x: Any, order: Any) -> None:
        lines.ranks(x, order, descending=descending)

    return loops(lower, body, [cube], [([outer, inner, length], "int64")])[0]
