"""Weighted sums of products of feature vectors: a matrix product whose left operand is not stored.

Rows of the left operand hold the products of one element of all pairs of features. They are made a
few at a time, stay in the first-level cache, and are multiplied by the packed weights as in `gemm`.
"""

from functools import cache

import numpy as np
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.panels import GemmParams
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.inlining import inlined
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.storage import element_bytes

_ROWS = 8


def params_for(maps: int, lanes: int) -> GemmParams:
    """How to pack the weights of a layer with `maps` outputs."""
    return GemmParams(lanes, min(2, -(-maps // lanes)), _ROWS)


def fold_symmetric(weights: np.ndarray, features: int) -> np.ndarray:
    """Weights [f * f, k] of products of features with themselves as [f * (f + 1) / 2, k].

    The products of i and j and of j and i are the same number, whose weights add up.
    """
    square = weights.reshape(features, features, -1)
    both = square + square.transpose(1, 0, 2)
    both[range(features), range(features)] /= 2
    return both[np.triu_indices(features)]


@cache
def compressed_interaction(
    left: int, right: int, dim: int, maps: int, params: GemmParams, activation: str, same: bool
) -> PrimFunc:
    """Kernel (x[n, left, dim], y[n, right, dim], weights, bias) -> out[n, maps, dim], `n` symbolic.

    The weights are packed as for `gemm`. `same` says that y is x and is left out, and that the
    weights are those of the products of features i <= j, in order of i, then j.
    """
    align, lanes = element_bytes("float32"), params.lanes
    vectors, width, panels = params.vectors, params.width, params.panels(maps)
    pairs = left * (left + 1) // 2 if same else left * right
    activated = Activation(activation)

    @inlined
    def products(x, y, z, turned, n, first, height):
        """z[r, :] = the products of the elements `first + r` of the features."""
        for f in range(right):
            for r in range(height):
                turned[r, f] = y[n, f, first + r]
        for r in range(height):
            for f in range(left):
                skipped = f if same else 0
                start = T.meta_var(f * right - f * (f - 1) // 2 if same else f * right)
                for j in range(right - skipped):
                    z[r, start + j] = x[n, f, first + r] * turned[r, skipped + j]

    @inlined
    def block(z, w, b, out, n, first, panel, height):
        acc = T.alloc_buffer((height * width,), "float32", scope="local")
        for r in T.unroll(height):
            for v in T.unroll(vectors):
                acc[T.ramp(r * width + v * lanes, 1, lanes)] = b[
                    T.ramp(panel * width + v * lanes, 1, lanes)
                ]
        for p in range(pairs):
            for r in T.unroll(height):
                for v in T.unroll(vectors):
                    acc[T.ramp(r * width + v * lanes, 1, lanes)] = (
                        acc[T.ramp(r * width + v * lanes, 1, lanes)]
                        + T.Broadcast(z[r, p], lanes) * w[panel, p, T.ramp(v * lanes, 1, lanes)]
                    )
        for j in T.vectorized(height * width):
            acc[j] = activated(acc[j])
        for j in range(T.min(width, maps - panel * width)):
            for r in T.unroll(height):
                out[n, panel * width + j, first + r] = acc[r * width + j]

    @inlined
    def rows(x, y, z, turned, w, b, out, n, first, height):
        if height > 0:
            products(x, y, z, turned, n, first, height)
            for panel in range(panels):
                block(z, w, b, out, n, first, panel, height)

    @T.prim_func(private=True, s_tir=True)
    def compressed_interaction(
        x_: T.handle, y_: T.handle, weights_: T.handle, bias_: T.handle, out_: T.handle
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        samples = T.int64()
        x = T.match_buffer(x_, (samples, left, dim), "float32", align=align)
        y = T.match_buffer(y_, (samples, right, dim), "float32", align=align)
        w = T.match_buffer(weights_, (panels, pairs, width), "float32", align=align)
        b = T.match_buffer(bias_, (panels * width,), "float32", align=align)
        out = T.match_buffer(out_, (samples, maps, dim), "float32", align=align)
        z = T.alloc_buffer((_ROWS, pairs), "float32")
        turned = T.alloc_buffer((_ROWS, right), "float32")
        for n in range(samples):
            for part in range(dim // _ROWS):
                rows(x, (y, x)[same], z, turned, w, b, out, n, part * _ROWS, _ROWS)
            rows(x, (y, x)[same], z, turned, w, b, out, n, dim - dim % _ROWS, dim % _ROWS)

    return without_parameters(compressed_interaction, *["y"] * same)
