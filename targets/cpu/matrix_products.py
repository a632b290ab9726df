"""Products of matrices that lie as a kernel reads them: attention, gates, weights per expert."""

from __future__ import annotations

from typing import Any

from graphopt.analysis.cost import Cost, cost_rule, streaming
from graphopt.ir.dims import Dim, product
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.kernels.matrix_products import matrix_products
from graphopt.targets.kernels.storage import element_bytes
from graphopt.targets.relax.lowering import Lowering, lowers

LEAST = 4
"""Columns of the second operand for which the kernel pays."""

x, y = var("x"), var("y")


@type_rule("MatrixProducts", domain=DOMAIN)
def _matrix_products_type(node: Node) -> list[Type | None]:
    assert node.inputs[0] is not None
    return [tensor_type(node.inputs[0].tensor.dtype, node.attrs["dims"])]


@cost_rule("MatrixProducts", domain=DOMAIN)
def _matrix_products_cost(node: Node) -> Cost:
    assert node.inputs[0] is not None
    return streaming(node, 2 * node.inputs[0].tensor.dims[-1] * product(node.output.tensor.dims))


@rule(op.MatMul(x, y))
def matmul_of_matrices(rw: Rewriter, node: Node, x: Value, y: Value) -> Value | NoMatch:
    """MatMul(x[…, n, k], y[…, k, m]) -> MatrixProducts(x, y)"""
    if x.dtype not in ("float32", "float64") or (y.const is not None and y.rank == 2):
        return NoMatch("not floats that there is a kernel for, or a dense layer")
    if x.rank is None or y.rank is None or min(x.rank, y.rank) < 2:
        return NoMatch("an operand is a vector, or of unknown rank")
    columns = y.tensor.dims[-1]
    if not isinstance(columns, int) or columns < LEAST:
        return NoMatch(f"its columns are not of known number, or fewer than {LEAST}")
    if x.tensor.dims[-1] != y.tensor.dims[-2] or 0 in x.tensor.dims[-2:]:
        return NoMatch("whether its operands fit is known only at run time, or they are empty")
    of_x, of_y = (product(value.tensor.dims[:-2]) for value in (x, y))
    rank = (node.output.rank or 0) - 2
    padded = [[*[1] * (rank + 2 - len(v.tensor.dims)), *v.tensor.dims[:-2]] for v in (x, y)]
    if padded[0] != padded[1] and 1 not in (of_x, of_y):
        return NoMatch("its operands are not as many matrices, nor is one of them single")
    attrs = {"dims": node.output.tensor.dims}
    return rw.insert("MatrixProducts", [x, y], attrs, domain=DOMAIN).output


RULES = (matmul_of_matrices,)


@lowers("MatrixProducts", domain=DOMAIN)
def _lower_matrix_products(lower: Lowering, node: Node) -> Any:
    x, y = node.inputs
    assert x is not None and y is not None
    (*of_x, n, k), (*of_y, _, m) = x.tensor.dims, y.tensor.dims
    batch, rows, one = product(of_y), n, product(of_x) == 1
    if batch == 1:  # all rows are multiplied with one matrix
        rows, one = product([*of_x, n]), True
    dtype = node.output.tensor.dtype
    lanes = node.attrs["lanes"] * element_bytes("float32") // element_bytes(dtype)
    kernel = matrix_products(*map(_known, (rows, m, k)), lanes, one, dtype)
    operands = [
        lower.reshape(lower.expr(x), [lower.dim(d) for d in (1 if one else batch, rows, k)]),
        lower.reshape(lower.expr(y), [lower.dim(d) for d in (batch, k, m)]),
    ]
    results = [([lower.dim(d) for d in (batch, rows, m)], dtype)]
    (result,) = lower.kernel(kernel, operands, results)
    return lower.reshape(result, lower.shape(node.output))


def _known(dim: Dim) -> int | None:
    return dim if isinstance(dim, int) else None
