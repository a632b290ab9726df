"""Weighted sums of products of feature vectors: a matrix product whose left operand is not stored.

Rows of the left operand hold the products of one element of all pairs of features. They are made a
few at a time, of several samples where these are short, so that all of them share what is read of
the weights, and are multiplied by the packed weights as in `gemm`.
"""

from functools import cache

import numpy as np
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.panels import (
    Emitted,
    GemmParams,
    adding_up,
    by_blocks,
    vectors_across,
    whole_matrix,
)
from graphopt.targets.kernels import script
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes

_ROWS = 24  # a multiple of what blocks have


def params_for(maps: int, lanes: int) -> GemmParams:
    """How to pack the weights of a layer with `maps` outputs."""
    if lanes == 8:
        return GemmParams(lanes, vectors_across(maps, lanes), 4)
    return GemmParams(lanes, min(2, -(-maps // lanes)), 8)


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
    align, panels, width = element_bytes("float32"), params.panels(maps), params.width
    pairs = left * (left + 1) // 2 if same else left * right

    @inlined
    def products(x, y, z, turned, first, count):
        """z[r, :] = the products of element (first + r) % dim of the features of its sample."""
        for r in range(count):
            n = (first + r) // dim
            at = (first + r) % dim
            for f in range(right):
                turned[f] = y[n, f, at]
            for f in range(left):
                skipped = f if same else 0
                start = T.meta_var(f * right - f * (f - 1) // 2 if same else f * right)
                for j in range(right - skipped):
                    z[r, start + j] = x[n, f, at] * turned[skipped + j]

    visit = by_blocks(params, panels, _block(pairs, dim, maps, params, Activation(activation)))

    @script.prim_func(private=True, s_tir=True)
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
        turned = T.alloc_buffer((right,), "float32")
        for chunk in range((samples * dim + _ROWS - 1) // _ROWS):
            first = T.meta_var(chunk * _ROWS)
            count = T.min(T.int64(_ROWS), samples * dim - first)
            products(x, (y, x)[same], z, turned, first, count)
            visit((z, w, b, out, first), count)

    return without_parameters(compressed_interaction, *["y"] * same)


def _block(pairs: int, dim: int, maps: int, params: GemmParams, activated: Activation) -> Emitted:
    """For use in a kernel: `block(tensors, row, panel, height, side)` computes rows of panels."""
    lanes, vectors = params.lanes, params.vectors
    add_up = adding_up(whole_matrix(pairs), params)

    @inlined
    def block(tensors, row, panel, height, side):
        z, w, b, out, first = T.meta_var(tensors)
        across = T.meta_var(side * vectors)
        acc = T.alloc_buffer((height * across * lanes,), "float32", scope="local")
        add_up((z,), w, b, acc, row, panel, height, across)
        for j in T.vectorized(height * across * lanes):
            acc[j] = activated(acc[j])
        for j in range(T.min(across * lanes, maps - panel * params.width)):
            for r in T.unroll(height):
                at = T.meta_var(first + row + r)
                out[at // dim, panel * params.width + j, at % dim] = acc[r * across * lanes + j]

    return block
