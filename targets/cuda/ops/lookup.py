"""Lookups by position. They are injective computations, so many of them fuse into one launch."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, te, tirx

from graphopt.ir.dims import product
from graphopt.ir.graph import Node
from graphopt.ops import table_rows
from graphopt.targets.cuda.lowering import ID_ERROR, CudaLowering, lowers
from graphopt.targets.kernels import bounds
from graphopt.targets.relax.lowering import compute, int64
from graphopt.targets.relax.operands import describe, same_sizes, tensor_input
from graphopt.targets.relax.ops.indexing import (
    column,
    fill_of,
    filled,
    fills,
    fitting,
    fixed_position,
    tuple_size,
)


@lowers("Gather")
def _gather(lower: CudaLowering, node: Node) -> relax.Expr:
    data, ids = tensor_input(node, 0), tensor_input(node, 1)
    sizes, rank = data.tensor.dims, len(ids.tensor.dims)
    axis = node.attr("axis") % len(sizes)
    at = fixed_position(ids, sizes[axis])
    if at is not None:
        return column(lower, node, axis, at)
    if fills(lower, node):
        return filled(lower, node)
    lower.demand_ids(node, ids, sizes[axis])
    shape, size = lower.shape(node.output), lower.dim(sizes[axis])

    def take(x: te.Tensor, i: te.Tensor) -> te.Tensor:
        def element(*o: Any) -> Any:
            before, place, after = o[:axis], o[axis : axis + rank], o[axis + rank :]
            return lower.looked_up(i(*place), size, lambda row: x(*before, row, *after))

        return compute(shape, element, "gather")

    return lower.te(take, lower.expr(data), lower.expr(ids))


@lowers("GatherElements")
def _gather_elements(lower: CudaLowering, node: Node) -> relax.Expr:
    data, ids = tensor_input(node, 0), tensor_input(node, 1)
    axis = node.attr("axis") % len(data.tensor.dims)
    lower.demand_ids(node, ids, data.tensor.dims[axis])
    size = lower.dim(data.tensor.dims[axis])
    fits = [(fitting(lower, ids, data, axis), "its indices are larger than its data")]

    def take(x: te.Tensor, i: te.Tensor) -> te.Tensor:
        def element(*o: Any) -> Any:
            def load(row: Any) -> Any:
                return x(*o[:axis], row, *o[axis + 1 :])

            return lower.looked_up(i(*o), size, load, fill_of(lower, node))

        return compute(i.shape, element, "gather_elements")

    return lower.te(take, lower.expr(data), lower.expr(ids), checks=fits)


@lowers("GatherND")
def _gather_nd(lower: CudaLowering, node: Node) -> relax.Expr:
    data, ids = tensor_input(node, 0), tensor_input(node, 1)
    sizes, shared = data.tensor.dims, node.attr("batch_dims")
    depth, outer = tuple_size(lower, ids), len(ids.tensor.dims) - 1
    extents = [int64(lower.dim(size)) for size in sizes[shared : shared + depth]]
    same = same_sizes(lower, sizes[:shared], ids.tensor.dims[:shared])
    demand_tuples(lower, node, extents)
    shape = lower.shape(node.output)

    def take(x: te.Tensor, i: te.Tensor) -> te.Tensor:
        def element(*o: Any) -> Any:
            def at(k: int, rows: list[Any]) -> Any:
                if k == depth:
                    return x(*o[:shared], *rows, *o[outer:])
                index = i(*o[:outer], k)

                def deeper(row: Any) -> Any:
                    return at(k + 1, [*rows, row])

                return lower.looked_up(index, extents[k], deeper, fill_of(lower, node))

            return at(0, [])

        return compute(shape, element, "gather_nd")

    checks = [(same, "its data and indices disagree on the batch")]
    return lower.te(take, lower.expr(data), lower.expr(ids), checks=checks)


def demand_tuples(lower: CudaLowering, node: Node, extents: list[Any]) -> None:
    """Report indices that their axes do not have."""
    ids, depth = tensor_input(node, 1), len(extents)
    if lower.oob != "error" or not depth:
        return
    count = lower.dim(product(ids.tensor.dims[:-1]))
    flat = lower.reshape(lower.expr(ids), [count, depth])

    def holds(k: Any, i: te.Tensor) -> Any:
        parts = [bounds.is_valid(i(k, j).astype("int64"), n) for j, n in enumerate(extents)]
        return tirx.all(*parts)

    lower.demand(holds, [flat], count, f"{ID_ERROR}{describe(node)}")


@lowers(table_rows.OP_TYPE, domain=table_rows.DOMAIN)
def _table_rows(lower: CudaLowering, node: Node) -> relax.Expr:
    ids, rows, starts = tensor_input(node, 0), node.const(1), node.const(2)
    if rows is None or starts is None or rows.min(initial=1) < 1:
        raise lower.unsupported("the sizes of its tables are not known, or one is empty")
    total, fields = int((rows + starts).max(initial=0)), len(rows)
    extents = lower.constant(np.stack([starts, rows]))
    shape = lower.shape(node.output)

    def row(i: te.Tensor, extent: te.Tensor) -> te.Tensor:
        def element(n: Any, f: Any) -> Any:
            index, size = i(n, f).astype("int64"), extent(1, f)
            inside = index if lower.oob == "zero" else tirx.max(tirx.min(index, size - 1), -size)
            found = extent(0, f) + tirx.Select(inside < 0, inside + size, inside)
            if lower.oob != "zero":
                return found
            return tirx.Select(bounds.is_valid(index, size), found, int64(total))

        return compute(shape, element, "table_rows")

    if lower.oob == "error":
        count = lower.dim(product(ids.tensor.dims))

        def holds(k: Any, i: te.Tensor, extent: te.Tensor) -> Any:
            f = tirx.floormod(k, int64(fields))
            index = i(tirx.floordiv(k, int64(fields)), f).astype("int64")
            return bounds.is_valid(index, extent(1, f))

        message = f"{ID_ERROR}TableRows {node.where[0]}"
        lower.demand(holds, [lower.expr(ids), extents], count, message)
    return lower.te(row, lower.expr(ids), extents)
