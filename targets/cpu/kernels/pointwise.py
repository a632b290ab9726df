"""Convolutions with kernels of one element: the same matrix times every sample.

A sample [K, L] is the left operand of a GEMM on its side, so that the packed weights, accumulators
and columns are those of `gemm`, and each element of the sample is broadcast.
"""

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.panels import GemmParams, rows_beside, vectors_across
from graphopt.targets.kernels import script
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes


def pointwise_params(n: int, length: int, lanes: int) -> GemmParams:
    """Parameters for `n` columns and samples of `length`: wide panels, few and even blocks."""
    vectors = vectors_across(n, lanes)
    most = rows_beside(vectors, lanes)
    rows = min(range(1, most + 1), key=lambda r: (-(-length // r), r))
    return GemmParams(lanes, vectors, rows)


@cache
def pointwise(
    k: int, n: int, length: int, params: GemmParams, activation: Activation | None = None
) -> PrimFunc:
    """Kernel (x[B, k, length], weights[panels, k, width], bias[panels * width]) -> y[B, n, length].

    y[b] = activation(weights.T @ x[b] + bias), all float32, B symbolic; weights and bias are packed
    as for `gemm`.  Sums run over k in order.
    """
    lanes, vectors, width = params.lanes, params.vectors, params.width
    panels, align = params.panels(n), element_bytes("float32")
    activated = activation or Activation()
    tail = length % params.rows

    @inlined
    def block(x, w, b, y, sample, first, panel, height):
        acc = T.alloc_buffer((height * width,), "float32", scope="local")
        tile = T.alloc_buffer((height * width,), "float32", scope="local")
        for r in T.unroll(height):
            for v in T.unroll(vectors):
                acc[T.ramp(r * width + v * lanes, 1, lanes)] = b[
                    T.ramp(panel * width + v * lanes, 1, lanes)
                ]
        for kk in range(k):
            for r in T.unroll(height):
                for v in T.unroll(vectors):
                    acc[T.ramp(r * width + v * lanes, 1, lanes)] = (
                        acc[T.ramp(r * width + v * lanes, 1, lanes)]
                        + T.Broadcast(x[sample, kk, first + r], lanes)
                        * w[panel, kk, T.ramp(v * lanes, 1, lanes)]
                    )
        for r in T.unroll(height):
            for v in T.unroll(vectors):
                for lane in T.vectorized(lanes):
                    tile[r * width + v * lanes + lane] = activated(
                        acc[r * width + v * lanes + lane]
                    )
        for column in range(T.min(width, n - panel * width)):
            for r in T.unroll(height):
                y[sample, panel * width + column, first + r] = tile[r * width + column]

    @script.prim_func(private=True, s_tir=True)
    def pointwise(x: T.handle, weights: T.handle, bias: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        batch = T.int64()
        left = T.match_buffer(x, (batch, k, length), "float32", align=align)
        right = T.match_buffer(weights, (panels, k, width), "float32", align=align)
        start = T.match_buffer(bias, (panels * width,), "float32", align=align)
        out = T.match_buffer(y, (batch, n, length), "float32", align=align)
        for panel, sample in T.grid(panels, batch):
            for i in range(length // params.rows):
                block(left, right, start, out, sample, i * params.rows, panel, params.rows)
            if tail > 0:
                block(left, right, start, out, sample, length - tail, panel, tail)

    return pointwise
