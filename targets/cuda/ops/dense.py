"""Dense layers, whose bias, activation and elementwise operands are applied at the store."""

from __future__ import annotations

import numpy as np
from tvm import relax

from graphopt.ir.dims import product
from graphopt.ir.graph import Node, Value
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.dense import operands_of
from graphopt.targets.cuda import coded_rows
from graphopt.targets.cuda.gemm_defaults import default_ranges
from graphopt.targets.cuda.kernels.gemm import coded_width, gemm
from graphopt.targets.cuda.kernels.packed import SUMS, pack_codes, pack_weights
from graphopt.targets.cuda.kernels.row_codes import row_codes
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.kernels.epilogue import Epilogue
from graphopt.targets.relax.operands import tensor_input


@lowers("Dense", domain=DOMAIN)
def _dense(lower: CudaLowering, node: Node) -> relax.Expr:
    data, weights, bias = node.inputs[0], node.const(1), node.const(2)
    assert data is not None and weights is not None
    k, n = weights.shape
    math = node.attrs["math"]
    ranges = node.attrs.get("ranges") or default_ranges(n, math)
    rounding, columns = node.attrs.get("data"), node.attrs.get("columns")
    fixed = rounding if math == "Int8" else None
    kernel = gemm(k, n, math, ranges, Epilogue.of(node.attrs), fixed)
    constants = [np.zeros(n, np.float32) if bias is None else bias]
    if rounding is None:
        constants.insert(0, pack_weights(weights, math))
    elif fixed is None:
        constants = [pack_codes(weights, SUMS), node.attrs["scale"], *constants]
    else:
        scale = node.attrs["scale"] * np.float32(fixed.scale)
        constants = [pack_codes(weights, fixed.zero), scale, *constants]
    constants += [] if columns is None else [columns]
    arguments = [_rows(lower, data), *map(lower.constant, constants)]
    arguments += operands_of(lower, node)
    rows = lower.dim(product(data.tensor.dims[:-1]))
    (result,) = lower.kernel(kernel, arguments, [([rows, n], "float32")])
    return lower.reshape(result, lower.shape(node.output))


def _rows(lower: CudaLowering, value: Value) -> relax.Expr:
    """A tensor as a matrix of its rows."""
    *leading, last = value.tensor.dims
    return lower.reshape(lower.expr(value), [lower.dim(product(leading)), lower.dim(last)])


@lowers(coded_rows.OP_TYPE, domain=DOMAIN)
def _row_codes(lower: CudaLowering, node: Node) -> relax.Expr:
    data = tensor_input(node, 0)
    *leading, k = data.tensor.dims
    assert isinstance(k, int)
    shape = [lower.dim(product(leading)), coded_width(k)]
    kernel = row_codes(k, node.attrs["levels"])
    (result,) = lower.kernel(kernel, [_rows(lower, data)], [(shape, "uint32")])
    return lower.reshape(result, lower.shape(node.output))
