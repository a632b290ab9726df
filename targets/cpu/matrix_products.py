"""Products of matrices that lie as a kernel reads them: attention, gates, weights per expert."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.analysis.cost import Cost, cost_rule, streaming
from graphopt.ir.dims import Dim, product
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.kernels.matrix_products import matrix_products
from graphopt.targets.cpu.kernels.packed_products import packed_products
from graphopt.targets.kernels.storage import element_bytes
from graphopt.targets.relax.lowering import Lowering, lowers

LEAST = 4
"""Columns of the second operand for which the kernel pays."""
LEAST_TURNED = 16
"""Rows of a second operand that lies the other way round which are packed rather than turned."""

_VIEWS = frozenset(["Reshape", "Squeeze", "Unsqueeze"])
x, y, t = var("x"), var("y"), var("t")


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
    depth, columns = y.tensor.dims[-2:]
    if isinstance(columns, int) and columns < LEAST:
        return NoMatch(f"it has fewer than {LEAST} columns")
    if not isinstance(columns, int) and not isinstance(depth, int):
        return NoMatch("neither its columns nor the products of a sum are of known number")
    if x.tensor.dims[-1] != depth or 0 in x.tensor.dims[-2:]:
        return NoMatch("whether its operands fit is known only at run time, or they are empty")
    of_x, of_y = (product(value.tensor.dims[:-2]) for value in (x, y))
    rank = (node.output.rank or 0) - 2
    padded = [[*[1] * (rank + 2 - len(v.tensor.dims)), *v.tensor.dims[:-2]] for v in (x, y)]
    if padded[0] != padded[1] and 1 not in (of_x, of_y):
        return NoMatch("its operands are not as many matrices, nor is one of them single")
    attrs: dict[str, Any] = {"dims": node.output.tensor.dims}
    many = not isinstance(columns, int) or (of_y == 1 and columns >= LEAST_TURNED)
    lying = lying_matrices(y) if many and isinstance(depth, int) else None
    if lying is not None:
        attrs["turned"], y = True, lying
    return rw.insert("MatrixProducts", [x, y], attrs, domain=DOMAIN).output


def lying_matrices(value: Value) -> Value | None:
    """The matrices that a Transpose turns into `value`, by exchanging their two axes, or None.

    The axes that count them may be others, as where the one head of attention has an axis.
    """
    node, last = value.producer, (value.shape or ())[-2:]
    while node is not None and node.op in _VIEWS and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer
    if node is None or node.op != "Transpose" or (value.shape or ())[-2:] != last:
        return None
    rank = node.output.rank or 0
    perm = [axis % rank for axis in node.attrs.get("perm") or reversed(range(rank))]
    return node.inputs[0] if perm == [*range(rank - 2), rank - 1, rank - 2] else None


@rule(op.Gemm(x, y), op.Gemm(x, y, t))
def gemm_of_matrices(rw: Rewriter, node: Node, x: Value, y: Value) -> Value | NoMatch:
    """Gemm(x, y, t) -> Add(MatMul(x, y), t), where it is no layer as it stands"""
    if x.dtype not in ("float32", "float64"):
        return NoMatch("not floats that there is a kernel for")
    left = rw.op.Transpose(x, perm=[1, 0]) if node.attr("transA") else x
    right = rw.op.Transpose(y, perm=[1, 0]) if node.attr("transB") else y
    result, other = rw.op.MatMul(left, right), node.input(2)
    if node.attr("alpha") != 1.0:
        result = rw.op.Mul(result, rw.const(np.array(node.attr("alpha"), x.dtype)))
    if other is None:
        return result
    if node.attr("beta") != 1.0:
        other = rw.op.Mul(other, rw.const(np.array(node.attr("beta"), x.dtype)))
    return rw.op.Add(result, other)


RULES = (gemm_of_matrices, matmul_of_matrices)


@lowers("MatrixProducts", domain=DOMAIN)
def _lower_matrix_products(lower: Lowering, node: Node) -> Any:
    x, y = node.inputs
    assert x is not None and y is not None
    (*of_x, n, k), of_y = x.tensor.dims, y.tensor.dims[:-2]
    m, turned = node.output.tensor.dims[-1], node.attrs.get("turned", False)
    batch, rows, one = product(of_y), n, product(of_x) == 1
    if batch == 1:  # all rows are multiplied with one matrix
        rows, one = product([*of_x, n]), True
    dtype = node.output.tensor.dtype
    lanes = node.attrs["lanes"] * element_bytes("float32") // element_bytes(dtype)
    if isinstance(m, int) and not turned:
        kernel = matrix_products(_known(rows), m, _known(k), lanes, one, dtype)
    else:
        assert isinstance(k, int)  # the rule saw to it
        kernel = packed_products(_known(rows), k, lanes, turned, one, dtype)
    operands = [
        lower.reshape(lower.expr(x), [lower.dim(d) for d in (1 if one else batch, rows, k)]),
        lower.reshape(
            lower.expr(y), [lower.dim(d) for d in (batch, *((m, k) if turned else (k, m)))]
        ),
    ]
    results = [([lower.dim(d) for d in (batch, rows, m)], dtype)]
    (result,) = lower.kernel(kernel, operands, results)
    return lower.reshape(result, lower.shape(node.output))


def _known(dim: Dim) -> int | None:
    return dim if isinstance(dim, int) else None
