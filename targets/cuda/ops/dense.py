"""Dense layers, whose bias, activation and elementwise operands are applied at the store."""

from __future__ import annotations

import numpy as np
from tvm import relax

from graphopt.ir.dims import product
from graphopt.ir.graph import Node
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.legalize import operands_of
from graphopt.targets.cuda.gemm_defaults import default_ranges
from graphopt.targets.cuda.kernels.gemm import gemm, pack_codes, pack_weights
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.kernels.epilogue import Epilogue


@lowers("Dense", domain=DOMAIN)
def _dense(lower: CudaLowering, node: Node) -> relax.Expr:
    data, weights, bias = node.inputs[0], node.const(1), node.const(2)
    assert data is not None and weights is not None
    k, n = weights.shape
    math = node.attrs["math"]
    ranges = node.attrs.get("ranges") or default_ranges(n, math)
    rounding, columns = node.attrs.get("data"), node.attrs.get("columns")
    kernel = gemm(k, n, math, ranges, Epilogue.of(node.attrs), rounding)
    constants = [np.zeros(n, np.float32) if bias is None else bias]
    if rounding is None:
        constants.insert(0, pack_weights(weights, math))
    else:
        scale = node.attrs["scale"] * np.float32(rounding.scale)
        constants = [pack_codes(weights, rounding.zero), scale, *constants]
    constants += [] if columns is None else [columns]
    rows = lower.dim(product(data.tensor.dims[:-1]))
    arguments = [lower.reshape(lower.expr(data), [rows, k]), *map(lower.constant, constants)]
    arguments += operands_of(lower, node)
    (result,) = lower.kernel(kernel, arguments, [([rows, n], "float32")])
    return lower.reshape(result, lower.shape(node.output))
