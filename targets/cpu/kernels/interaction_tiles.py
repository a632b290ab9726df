"""Weighted sums of products of feature vectors, by tiles of AMX.

The weights are the rows that are multiplied. The products are made in pairs for 32 elements at a
time, beside each other as they are stored, which is how tiles of weights are packed: neither they
nor the sums have to be turned around.
"""

from functools import cache
from math import gcd

import numpy as np
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.amx import TILE, configuring
from graphopt.targets.cpu.kernels.bfloat16 import PAIR, Words, pair_rows
from graphopt.targets.cpu.kernels.panels import Emitted
from graphopt.targets.cpu.kernels.tile_products import SUMS, multiplying
from graphopt.targets.kernels import script
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes

_VECTORS = 2
_ELEMENTS = _VECTORS * TILE  # of a block


def _products(left: int, right: int, same: bool) -> np.ndarray:
    """Which features are multiplied, in the order of the kernel: int[count, 2].

    Those of a set with itself are i and i + k for each distance k, beyond the last feature from the
    first one on. Of an odd number of products in a row the first one is there once more.
    """
    even = -(-right // PAIR) * PAIR
    rows = right // 2 + 1 if same else left
    row, column = np.divmod(np.arange(rows * even), even)
    return np.stack([column if same else row, column + row * same], 1) % [left, right]


def pack_interaction(
    weights: np.ndarray, left: int, right: int, same: bool, words: Words
) -> np.ndarray:
    """Weights [left * right, maps] as int32[maps up to a multiple of 16, words]; zero beyond.

    Products that are the same number share what weights there are for it.
    """
    pairs = _products(left, right, same)
    places = np.sort(pairs, 1) if same else pairs
    square = weights.reshape(left, right, -1)
    if same:
        both = square + square.transpose(1, 0, 2)
        both[range(left), range(left)] /= 2
        square = both
    _, which, times = np.unique(places @ [right, 1], return_inverse=True, return_counts=True)
    shared = square[tuple(places.T)] / times[which.reshape(-1), None].astype(np.float32)
    packed = pair_rows(shared).T
    depth = words.depth(len(pairs))
    padded = np.zeros((-(-len(packed) // TILE) * TILE, depth), np.int32)
    padded[: len(packed), : packed.shape[1]] = packed
    return padded


@cache
def interaction_tiles(
    left: int, right: int, dim: int, maps: int, words: Words, activation: str, same: bool
) -> PrimFunc:
    """Kernel (x[n, left, dim], y[n, right, dim], weights, bias[maps]) -> out[n, maps, dim].

    As `compressed_interaction`, with weights of `pack_interaction`; products are rounded to
    bfloat16, sums are float32. `n` is symbolic, and `words` has tiles.
    """
    align = element_bytes("float32")
    depth = words.depth(len(_products(left, right, same)))
    rows = -(-maps // TILE) * TILE
    step = gcd(dim, TILE)  # elements that lie side by side
    assert words.tiles is not None
    begin, end = configuring(words.tiles, depth)
    copied, paired = _copying(dim, step), _pairing(left, right, depth, words, same)
    stored = _storing(dim, maps, step, Activation(activation))
    multiply = multiplying(words.tiles, "tdpbf16ps", depth, _VECTORS)

    @script.prim_func(private=True, s_tir=True)
    def interaction_tiles(
        x_: T.handle, y_: T.handle, weights_: T.handle, bias_: T.handle, out_: T.handle
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        samples = T.int64()
        x = T.match_buffer(x_, (samples, left, dim), "float32", align=align)
        y = T.match_buffer(y_, (samples, right, dim), "float32", align=align)
        w = T.match_buffer(weights_, (rows, depth), "int32", align=align)
        b = T.match_buffer(bias_, (maps,), "float32", align=align)
        out = T.match_buffer(out_, (samples, maps, dim), "float32", align=align)
        with T.attr(0, "pragma_import_llvm", words.llvm):
            begin(T.int64(TILE))
            xs = T.alloc_buffer((2 * left if same else left, _ELEMENTS), "float32")
            ys = T.alloc_buffer((right + 1, _ELEMENTS), "float32")
            z = T.alloc_buffer((1, depth, _ELEMENTS), "int32")
            sums = T.alloc_buffer((SUMS,), "float32", scope="local")
            for block in range((samples * dim + _ELEMENTS - 1) // _ELEMENTS):
                first = T.meta_var(block * _ELEMENTS)
                count = T.min(T.int64(_ELEMENTS), samples * dim - first)
                copied(x, xs, first, count, left, 2 * left if same else left)
                if not same:
                    copied(y, ys, first, count, right, right + 1)
                paired(xs, (ys, xs)[same], z)
                more = T.meta_var((b, out, first, count, sums))
                for i in range(rows // (2 * TILE)):
                    at = T.meta_var(2 * TILE * i)
                    multiply((w, at, z), 0, sums, 0, 2 * TILE)
                    stored(more, at, 2 * TILE)
                if rows % (2 * TILE) > 0:
                    at = T.meta_var(rows - TILE)
                    multiply((w, at, z), 0, sums, 0, TILE)
                    stored(more, at, TILE)
            end(T.int64(TILE))

    return without_parameters(interaction_tiles, *["y"] * same)


def _copying(dim: int, step: int) -> Emitted:
    """For use in a kernel: `copied(x, xs, first, count, features, copies)`.

    xs[f, e] becomes element (first + e) % dim of feature f of its sample, for `count` elements;
    beyond the last feature the first ones come again. All other elements are 0: what was there
    before may be slow to multiply, being subnormal.
    """

    @inlined
    def copied(x, xs, first, count, features, copies):
        for part in range(count // step):
            n = (first + part * step) // dim
            at = (first + part * step) % dim
            for f in range(features):
                for e in T.vectorized(step):
                    xs[f, part * step + e] = x[n, f, at + e]
            for f in range(copies - features):
                for e in T.vectorized(step):
                    xs[features + f, part * step + e] = x[n, f, at + e]
        for f in range(copies):
            for e in range(count, _ELEMENTS):
                xs[f, e] = T.float32(0)

    return copied


def _pairing(left: int, right: int, depth: int, words: Words, same: bool) -> Emitted:
    """For use in a kernel: `paired(xs, ys, z)` makes the words of all products."""
    across = -(-right // PAIR)
    rows = right // 2 + 1 if same else left

    @inlined
    def paired(xs, ys, z):
        for r in range(rows):
            for c in range(across):
                for v in T.unroll(_VECTORS):
                    at = T.meta_var(T.ramp(v * TILE, 1, TILE))
                    if same:
                        z[0, r * across + c, at] = words.paired(
                            xs[PAIR * c, at] * ys[PAIR * c + r, at],
                            xs[PAIR * c + 1, at] * ys[PAIR * c + 1 + r, at],
                        )
                    else:
                        z[0, r * across + c, at] = words.paired(
                            xs[r, at] * ys[PAIR * c, at], xs[r, at] * ys[PAIR * c + 1, at]
                        )
        for beyond in range(depth - rows * across):
            for v in T.unroll(_VECTORS):
                z[0, rows * across + beyond, T.ramp(v * TILE, 1, TILE)] = T.Broadcast(
                    T.int32(0), TILE
                )

    return paired


def _storing(dim: int, maps: int, step: int, activated: Activation) -> Emitted:
    """For use in a kernel: `stored(more, row, height)` stores the sums of some rows."""

    @inlined
    def stored(more, row, height):
        b, out, first, elements, sums = T.meta_var(more)
        width = T.meta_var(_ELEMENTS)
        for r in range(T.min(height, maps - row)):
            for lane in T.vectorized(width):
                sums[r * width + lane] = activated(sums[r * width + lane] + b[row + r])
        for part in range(elements // step):
            n = (first + part * step) // dim
            at = (first + part * step) % dim
            for r in range(T.min(height, maps - row)):
                for e in T.vectorized(step):
                    out[n, row + r, at + e] = sums[r * width + part * step + e]

    return stored
