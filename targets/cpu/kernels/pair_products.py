"""Products of pairs of feature vectors, one of which a matrix may have multiplied.

Pairs with the same left feature and matrix make a group. For a few samples at a time, the left
feature of a group is multiplied with its matrix, as in `gemm`, and the result with the right
feature of each pair, while all of it is in the first-level cache.
"""

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.panels import Emitted, GemmParams
from graphopt.targets.kernels import script
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes

_SAMPLES = 32  # whose results for a group are kept: 8 kB of 64 columns


@cache
def pair_products(features: int, dim: int, pairs: int, lanes: int) -> PrimFunc:
    """Kernel (x[n, features, dim], left[pairs], right[pairs]) -> out[n, pairs, dim].

    out[:, p] = x[:, left[p]] * x[:, right[p]], float32; the positions are int32 and not checked,
    `n` is symbolic.

    Args:
        lanes: float32 elements in a vector register.
    """
    align = element_bytes("float32")
    whole, tail = dim // lanes, dim % lanes

    @inlined
    def product(x, out, n, p, a, b, first, width):
        for lane in T.vectorized(width):
            out[n, p, first + lane] = x[n, a, first + lane] * x[n, b, first + lane]

    @script.prim_func(private=True, s_tir=True)
    def pair_products(features_: T.handle, left_: T.handle, right_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        samples = T.int64()
        x = T.match_buffer(features_, (samples, features, dim), "float32", align=align)
        left = T.match_buffer(left_, (pairs,), "int32", align=align)
        right = T.match_buffer(right_, (pairs,), "int32", align=align)
        out = T.match_buffer(out_, (samples, pairs, dim), "float32", align=align)
        for n in range(samples):
            for p in range(pairs):
                for part in range(whole):
                    product(x, out, n, p, left[p], right[p], part * lanes, lanes)
                if tail > 0:
                    product(x, out, n, p, left[p], right[p], dim - tail, tail)

    return pair_products


@cache
def weighted_pair_products(
    features: int, dim: int, pairs: int, groups: int, matrices: int, params: GemmParams
) -> PrimFunc:
    """Kernel (x, weights, left, matrix, starts, order, right) -> out[n, pairs, dim].

    x[n, features, dim], float32; weights[matrices, panels, dim, width], each packed as for `gemm`;
    for each group its left feature, its matrix, and where its pairs start (and where the last end);
    for each pair, group by group, its place in `out` and its right feature. Positions are int32 and
    not checked. Sums run over the elements of a feature in order, whatever `n` is.
    """
    align, lanes, panels = element_bytes("float32"), params.lanes, params.panels(dim)
    whole, tail = dim // lanes, dim % lanes
    block = _multiplying(dim, params)

    @inlined
    def product(x, z, out, n, row, p, b, first, columns):
        for lane in T.vectorized(columns):
            out[n, p, first + lane] = z[row, first + lane] * x[n, b, first + lane]

    @script.prim_func(private=True, s_tir=True)
    def weighted_pair_products(
        features_: T.handle,
        weights_: T.handle,
        left_: T.handle,
        matrix_: T.handle,
        starts_: T.handle,
        order_: T.handle,
        right_: T.handle,
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        samples = T.int64()
        x = T.match_buffer(features_, (samples, features, dim), "float32", align=align)
        w = T.match_buffer(weights_, (matrices, panels, dim, params.width), "float32", align=align)
        left = T.match_buffer(left_, (groups,), "int32", align=align)
        matrix = T.match_buffer(matrix_, (groups,), "int32", align=align)
        starts = T.match_buffer(starts_, (groups + 1,), "int32", align=align)
        order = T.match_buffer(order_, (pairs,), "int32", align=align)
        right = T.match_buffer(right_, (pairs,), "int32", align=align)
        out = T.match_buffer(out_, (samples, pairs, dim), "float32", align=align)
        z = T.alloc_buffer((_SAMPLES, panels * params.width), "float32")
        for part in range((samples + _SAMPLES - 1) // _SAMPLES):
            first = part * _SAMPLES
            count = T.min(samples - first, _SAMPLES)
            for g in range(groups):
                for panel in range(panels):
                    for i in range(count // params.rows):
                        block(
                            x, w, z, first, i * params.rows, left[g], matrix[g], panel, params.rows
                        )
                    for i in range(count % params.rows):
                        row = count - count % params.rows + i
                        block(x, w, z, first, row, left[g], matrix[g], panel, 1)
                for at in range(starts[g], starts[g + 1]):
                    for row in range(count):
                        n = first + row
                        for c in range(whole):
                            product(x, z, out, n, row, order[at], right[at], c * lanes, lanes)
                        if tail > 0:
                            product(x, z, out, n, row, order[at], right[at], dim - tail, tail)

    return weighted_pair_products


def _multiplying(dim: int, params: GemmParams) -> Emitted:
    """For use in a kernel: `block(x, w, z, first, row, feature, matrix, panel, height)`.

    z[row + r, panel] becomes the product of one panel with the feature of sample first + row + r,
    for r below `height`.
    """
    vectors, width, lanes = params.vectors, params.width, params.lanes

    @inlined
    def block(x, w, z, first, row, feature, matrix, panel, height):
        acc = T.alloc_buffer((height * width,), "float32", scope="local")
        for r in T.unroll(height):
            for v in T.unroll(vectors):
                acc[T.ramp(r * width + v * lanes, 1, lanes)] = T.Broadcast(T.float32(0), lanes)
        for k in range(dim):
            for r in T.unroll(height):
                for v in T.unroll(vectors):
                    acc[T.ramp(r * width + v * lanes, 1, lanes)] = (
                        acc[T.ramp(r * width + v * lanes, 1, lanes)]
                        + T.Broadcast(x[first + row + r, feature, k], lanes)
                        * w[matrix, panel, k, T.ramp(v * lanes, 1, lanes)]
                    )
        for r in T.unroll(height):
            for v in T.unroll(vectors):
                z[row + r, T.ramp(panel * width + v * lanes, 1, lanes)] = acc[
                    T.ramp(r * width + v * lanes, 1, lanes)
                ]

    return block
