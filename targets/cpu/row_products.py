"""Products of computed matrices that add up along the rows of both, by a kernel of their own.

TE's schedule has the last axis of the result innermost, which here strides through the second
operand, and LLVM may not reorder a sum along a row: it would be computed one product at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphopt.analysis.cost import Cost, cost_rule, streaming
from graphopt.ir.dims import Dim, product
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.kernels.row_products import row_products
from graphopt.targets.cpu.matrix_products import lying_matrices
from graphopt.targets.relax.lowering import Lowering, lowers

LEAST = 8
"""Rows of the second operand, and elements of each, for which the kernel pays."""

x, y, turned, axes = var("x"), var("y"), var("turned"), const("axes")


@type_rule("RowProducts", domain=DOMAIN)
def _row_products_type(node: Node) -> list[Type | None]:
    return [tensor_type("float32", node.attrs["dims"])]


@cost_rule("RowProducts", domain=DOMAIN)
def _row_products_cost(node: Node) -> Cost:
    assert node.inputs[1] is not None
    return streaming(node, 2 * node.inputs[1].tensor.dims[-1] * product(node.output.tensor.dims))


@rule(op.MatMul(x, turned))
def matmul_of_rows(rw: Rewriter, node: Node, x: Value, turned: Value) -> Value | NoMatch:
    """MatMul(x, Transpose(y)) -> RowProducts(x, y)"""
    y, rank = lying_matrices(turned), turned.rank or 0
    if y is None or rank < 3 or x.rank != rank or x.shape[:-2] != turned.shape[:-2]:  # type: ignore[index]
        return NoMatch("the second operand is not one matrix, turned, for each of the first")
    return _of_rows(rw, node, x, y, y.tensor.dims[:-2], x.tensor.dims[-2])


@rule(op.MatMul(y, x))
def matmul_with_vector(rw: Rewriter, node: Node, x: Value, y: Value) -> Value | NoMatch:
    """MatMul(y[…, m, k], x[…, k, 1]) -> RowProducts(x, y)"""
    if (x.rank or 0) < 3 or x.rank != y.rank or x.tensor.dims[-1] != 1:
        return NoMatch("the second operand is not one column for each matrix")
    return _of_rows(rw, node, x, y, x.tensor.dims[:-2], 1)


@rule(op.ReduceSum(op.Mul(x, y), axes))
def sum_of_products(rw: Rewriter, node: Node, x: Value, y: Value, axes: Value) -> Value | NoMatch:
    """ReduceSum(Mul(x[…, 1, k], y[…, m, k]), last axis) -> RowProducts(x, y)"""
    rank = x.rank or 0
    assert axes.const is not None
    if rank < 3 or y.rank != rank or [axis % rank for axis in axes.const.tolist()] != [rank - 1]:
        return NoMatch("it adds up over other axes than the last")
    one, many = (x, y) if x.tensor.dims[-2] == 1 else (y, x)
    if one.tensor.dims[-2] != 1:
        return NoMatch("neither has one row for all rows of the other")
    return _of_rows(rw, node, one, many, one.tensor.dims[:-2], 1)


def _of_rows(
    rw: Rewriter, node: Node, x: Value, y: Value, batch: Sequence[Dim], rows: Dim
) -> Value | NoMatch:
    """RowProducts(x, y) of the shape of `node`, if the kernel suits; `rows` are those of x."""
    *others, m, k = y.tensor.dims
    if (x.dtype, y.dtype) != ("float32", "float32") or x.const is not None or y.const is not None:
        return NoMatch("its operands are not both computed float32 tensors")
    if not isinstance(m, int) or not isinstance(k, int) or min(m, k) < LEAST:
        return NoMatch(f"its rows are not of known size, or fewer or shorter than {LEAST}")
    if others != list(batch) or product(x.tensor.dims) != product([*batch, rows, k]):
        return NoMatch("its operands are not as many matrices")
    attrs = {"rows": rows, "dims": node.output.tensor.dims}
    return rw.insert("RowProducts", [x, y], attrs, domain=DOMAIN).output


RULES = (matmul_of_rows, matmul_with_vector, sum_of_products)


@lowers("RowProducts", domain=DOMAIN)
def _lower_row_products(lower: Lowering, node: Node) -> Any:
    x, y = node.inputs
    assert x is not None and y is not None
    *others, m, k = y.tensor.dims
    assert isinstance(m, int) and isinstance(k, int)  # the rules saw to it
    rows = node.attrs["rows"]
    batch, n = lower.dim(product(others)), lower.dim(rows)
    kernel = row_products(rows if isinstance(rows, int) else None, m, k, node.attrs["lanes"])
    operands = [
        lower.reshape(lower.expr(x), [batch, n, k]),
        lower.reshape(lower.expr(y), [batch, m, k]),
    ]
    (result,) = lower.kernel(kernel, operands, [([batch, n, m], "float32")])
    return lower.reshape(result, lower.shape(node.output))
