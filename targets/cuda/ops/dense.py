"""Dense layers, whose bias, activation and elementwise operands are applied at the store."""

from __future__ import annotations

import numpy as np
from tvm import relax

from graphopt.ir.dims import product
from graphopt.ir.graph import Node
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cuda.gemm_defaults import default_ranges
from graphopt.targets.cuda.kernels.gemm import gemm, pack_codes, pack_weights
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.kernels.activation import Activation


@lowers("Dense", domain=DOMAIN)
def _dense(lower: CudaLowering, node: Node) -> relax.Expr:
    data, weights, bias = node.inputs[0], node.const(1), node.const(2)
    assert data is not None and weights is not None
    k, n = weights.shape
    math = node.attrs["math"]
    ranges = node.attrs.get("ranges") or default_ranges(k, n, math)
    activation = Activation(
        node.attrs.get("activation", "none"), node.attrs.get("alpha"), node.attrs.get("beta")
    )
    rounding = node.attrs.get("data")
    kernel = gemm(k, n, math, ranges, activation, tuple(node.attrs.get("steps", ())), rounding)
    constants = [np.zeros(n, np.float32) if bias is None else bias]
    if rounding is None:
        constants.insert(0, pack_weights(weights, math))
    else:
        scale = node.attrs["scale"] * np.float32(rounding.scale)
        constants = [pack_codes(weights, rounding.zero), scale, *constants]
    rows = lower.dim(product(data.tensor.dims[:-1]))
    operands = [
        lower.reshape(lower.expr(value), [rows, n])
        for value in node.inputs[3:]
        if value is not None
    ]
    arguments = [lower.reshape(lower.expr(data), [rows, k]), *map(lower.constant, constants)]
    (result,) = lower.kernel(kernel, [*arguments, *operands], [([rows, n], "float32")])
    return lower.reshape(result, lower.shape(node.output))
