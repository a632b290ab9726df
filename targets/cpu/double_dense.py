"""Dense layers in float64, which the packed GEMM multiplies with half as many lanes."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.analysis.cost import Cost, cost_rule, streaming
from graphopt.ir.dims import product
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.kernels.gemm import gemm
from graphopt.targets.cpu.kernels.panels import default_params, pack_bias, pack_weights
from graphopt.targets.cpu.rates import operations
from graphopt.targets.kernels.storage import element_bytes
from graphopt.targets.relax.lowering import Lowering, lowers

FLOAT64 = "float64"

x, w, b = var("x"), const("w"), const("b")


@type_rule("DoubleDense", domain=DOMAIN)
def _double_dense_type(node: Node) -> list[Type | None]:
    data, weights = node.inputs[0], node.inputs[1]
    assert data is not None and weights is not None
    return [tensor_type(FLOAT64, [*data.tensor.dims[:-1], weights.tensor.dims[1]])]


@cost_rule("DoubleDense", domain=DOMAIN)
def _double_dense_cost(node: Node) -> Cost:
    weights = node.inputs[1]
    assert weights is not None
    k = int(product(weights.tensor.dims[:1]))  # type: ignore[arg-type]
    return streaming(node, operations(node, k) * product(node.output.tensor.dims))


@rule(op.MatMul(x, w))
def matmul_to_double_dense(rw: Rewriter, x: Value, w: Value) -> Value | NoMatch:
    """MatMul(x, w) -> DoubleDense(x, w)"""
    if (x.dtype, w.rank) != (FLOAT64, 2) or (x.rank or 0) < 2:
        return NoMatch("not a float64 tensor times a constant matrix")
    return rw.insert("DoubleDense", [x, w], domain=DOMAIN).output


@rule(op.Gemm(x, w), op.Gemm(x, w, b))
def gemm_to_double_dense(rw: Rewriter, node: Node, x: Value, w: Value) -> Value | NoMatch:
    """Gemm(x, w, b) -> DoubleDense(x, w, b)"""
    if x.dtype != FLOAT64 or node.attr("transA"):
        return NoMatch("not float64, or its first operand is transposed")
    weights, bias = w.const, node.input(2)
    assert weights is not None
    weights = (weights.T if node.attr("transB") else weights) * node.attr("alpha")
    inputs = [x, rw.const(weights)]
    if bias is not None:
        assert bias.const is not None
        if (bias.const.shape or (1,))[-1] != bias.const.size:
            return NoMatch("its bias differs from row to row")
        row = np.broadcast_to(bias.const.reshape(-1), weights.shape[1:])
        inputs.append(rw.const(row * node.attr("beta")))
    return rw.insert("DoubleDense", inputs, domain=DOMAIN).output


RULES = (matmul_to_double_dense, gemm_to_double_dense)


@lowers("DoubleDense", domain=DOMAIN)
def _lower_double_dense(lower: Lowering, node: Node) -> Any:
    data, weights = node.inputs[0], node.const(1)
    assert data is not None and weights is not None
    k, n = weights.shape
    lanes = max(1, node.attrs["lanes"] * element_bytes("float32") // element_bytes(FLOAT64))
    params = default_params(n, lanes, k)
    packed = [pack_weights(weights, params), pack_bias(node.const(2), n, params, FLOAT64)]
    rows = lower.dim(product(data.tensor.dims[:-1]))
    left = lower.reshape(lower.expr(data), [rows, lower.dim(k)])
    kernel = gemm(k, n, params, stored=FLOAT64, dtype=FLOAT64)
    arguments = [left, *map(lower.constant, packed)]
    (result,) = lower.kernel(kernel, arguments, [([rows, lower.dim(n)], FLOAT64)])
    return lower.reshape(result, lower.shape(node.output))
