"""Packed GEMM of float32 data and bfloat16 weights: data are rounded on the way, sums are float32.

Twice as many products an instruction as in float32, and half the bytes of weights, for operands
with 8 bits of significand. Some rows of the data are rounded at a time, so that what is multiplied
again and again, once for each panel of columns, is in cache. With AMX all rows are multiplied as
tiles, however few: vectors would add them up in another order.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.amx import TILE, configuring
from graphopt.targets.cpu.kernels.bfloat16 import PAIR, Words, pair_rows, word
from graphopt.targets.cpu.kernels.panel_ahead import asking, asks
from graphopt.targets.cpu.kernels.panels import (
    GemmParams,
    applying,
    by_blocks,
    registers,
    storing,
)
from graphopt.targets.cpu.kernels.tile_products import by_tiles, tile_params
from graphopt.targets.kernels import script
from graphopt.targets.kernels.epilogue import PLAIN, Epilogue
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes

_TIME = {1: 1.4, 2: 1.05, 3: 1.0, 4: 1.0}
"""What a vector of a panel costs by how many the panel has: alone, it waits for the data."""
CHUNK_BYTES = 640 << 10
"""Of rounded data, which share a second-level cache of 1 MiB with a panel: weights come from
further away once for so many rows."""


def suits(weights: Sequence[int], lanes: int) -> bool:
    """True if `bf16_gemm` is faster than kernels that multiply float32, for this shape [K, N]."""
    return min(weights) >= PAIR * lanes


def bf16_params(n: int, lanes: int, tiles: bool = False) -> GemmParams:
    """Parameters for `n` columns, multiplied by vectors or by `tiles`."""
    if tiles:
        return tile_params(n)
    available, widest = registers(lanes)

    def time(vectors: int) -> float:
        return -(-n // (lanes * vectors)) * vectors * _TIME[vectors]

    vectors = min(range(1, min(widest, len(_TIME)) + 1), key=lambda v: (time(v), -v))
    return GemmParams(lanes, vectors, rows=min(12, (available - vectors - 1) // vectors))


def pack_bf16(weights: np.ndarray, params: GemmParams, words: Words) -> np.ndarray:
    """float32[K, N] as int32[panels, words.depth(K), width]; zero beyond K and N."""
    k, n = weights.shape
    pairs, depth, panels = pair_rows(weights), words.depth(k), params.panels(n)
    padded = np.zeros((depth, panels * params.width), np.int32)
    padded[: len(pairs), :n] = pairs
    return np.ascontiguousarray(padded.reshape(depth, panels, -1).transpose(1, 0, 2))


@cache
def bf16_gemm(
    k: int,
    n: int,
    params: GemmParams,
    words: Words,
    epilogue: Epilogue = PLAIN,
    far: bool = False,
    takes_words: bool = False,
    gives_words: bool = False,
) -> PrimFunc:
    """Kernel (x[M, k], weights, bias[panels * width], columns, *operands) -> y[M, n], M symbolic.

    As `gemm`, with weights packed by `pack_bf16` and x rounded to bfloat16: all else is float32.
    The CPU's instruction flushes subnormal numbers to zero.  NaN stays NaN.

    Args:
        far: weights come from memory each time (`panel_ahead`); tiles do not ask for them.
        takes_words: x is rounded already, int32[M, words.stride(k)].
        gives_words: y is so too, int32[M, words.stride(n)].
    """
    width, depth, panels = params.width, words.depth(k), params.panels(n)
    tallest = 2 * TILE if words.tiles else params.rows
    rows = max(1, CHUNK_BYTES // (4 * depth) // tallest) * tallest
    stride = words.stride(k)
    taken = (stride, "int32") if takes_words else (k, "float32")
    given = (words.stride(n), "int32") if gives_words else (n, "float32")
    align, size = element_bytes("float32"), element_bytes("int32")
    constants = max(1, epilogue.activation.columns)
    rounded = _rounding(k, words)
    stored = _storing(n, params, epilogue, words if gives_words else None)
    if words.tiles is None:
        begin = end = _nothing
        ahead = asking(depth, params, size, far) if asks(depth, panels, params, size) else None
        by_vectors = by_blocks(params, panels, _vector_block(depth, params, words, stored, ahead))

        @inlined
        def visit(tensors, rows, _):
            by_vectors(tensors, rows)

    else:
        begin, end = configuring(words.tiles, depth)
        finish = _finishing(params, stored)
        how = (depth, n), params, _operands, finish, "float32"
        visit = by_tiles(words.tiles, "tdpbf16ps", *how)

    @script.prim_func(private=True, s_tir=True)
    def bf16_gemm(
        x: T.handle, w: T.handle, b: T.handle, c: T.handle, p: T.handle, q: T.handle, y: T.handle
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        m, fewer, least = T.int64(), T.int64(), T.int64()
        left = T.match_buffer(x, (m, taken[0]), taken[1], align=align)
        weights = T.match_buffer(w, (panels, depth, width), "int32", align=size)
        bias = T.match_buffer(b, (panels * width,), "float32", align=align)
        columns = T.match_buffer(c, (constants, panels * width), "float32", align=align)
        first = T.match_buffer(p, (epilogue.rows(0, m, fewer), n), "float32", align=align)
        second = T.match_buffer(q, (epilogue.rows(1, m, least), n), "float32", align=align)
        out = T.match_buffer(y, (m, given[0]), given[1], align=align)
        with T.attr(0, "pragma_import_llvm", words.llvm):
            begin(m)
            for chunk in range((m + rows - 1) // rows):
                start = T.meta_var(chunk * rows)
                count = T.min(T.int64(rows), m - start)
                results = T.meta_var((start, bias, (columns, first, second), out))
                if takes_words:
                    visit(((left, start, weights, count), results), count, start)
                else:
                    # TVM would leave out of a matrix what it does not see read: words between rows.
                    room = T.alloc_buffer((rows * stride,), "int32")
                    data = T.decl_buffer((rows, stride), "int32", data=room.data)
                    rounded(left, data, start, count)
                    visit(((data, 0, weights, count), results), count, 0)
            end(m)

    return without_parameters(bf16_gemm, *epilogue.unused)


@inlined
def _nothing(rows):
    pass


def _storing(n, params, epilogue, words):
    """For use in a kernel: `stored(results, row, column, sums, at)` stores a vector of sums.

    With `words` what is stored is rounded; words beyond column `n` that are read are zero.
    """
    lanes = params.lanes
    store, apply = storing(n, lanes, epilogue), applying(n, lanes, epilogue)
    beyond = words.depth(n) - -(-n // lanes) * lanes // PAIR if words else 0

    @inlined
    def store_words(y, row, column, values, given):
        apply(values, 0, row, column, given)
        if n % lanes > 0 and column + lanes > n:
            for lane in range(n % lanes, lanes):
                values[lane] = T.float32(0)
        place = T.meta_var(T.truncdiv(column, PAIR))
        y[row, T.ramp(place, 1, lanes // PAIR)] = words.rounded(values[T.ramp(0, 1, lanes)])
        if beyond > 0 and column + lanes >= n:
            y[row, T.ramp(words.depth(n) - beyond, 1, beyond)] = T.Broadcast(T.int32(0), beyond)

    @inlined
    def stored(results, row, column, sums, at):
        start, bias, given, y = T.meta_var(results)
        values = T.alloc_buffer((lanes,), "float32", scope="local")
        values[T.ramp(0, 1, lanes)] = sums[T.ramp(at, 1, lanes)] + bias[T.ramp(column, 1, lanes)]
        if column < n:
            if words is None:
                store(y, start + row, column, values, 0, given)
            else:
                store_words(y, start + row, column, values, given)

    return stored


def _operands(tensors, row):
    """Data, where a row is in them, and weights, for `by_tiles`."""
    data, start, weights, _ = tensors[0]
    return data, start + row, weights


def _finishing(params, stored):
    """For use in a kernel: a row of sums, as `by_tiles` hands it over."""
    lanes, width = params.lanes, params.width

    @inlined
    def finish(tensors, first, panel, sums, at, row):
        for v in T.unroll(params.vectors):
            column, place = T.meta_var((panel * width + v * lanes, at + row * width + v * lanes))
            stored(tensors[1], first + row, column, sums, place)

    return finish


def _vector_block(depth, params, words, stored, ahead):
    """For use in a kernel: `block(tensors, first, panel, height, _)` computes rows of a panel."""
    lanes, vectors, width = params.lanes, params.vectors, params.width
    share, ask = ahead or (None, None)

    @inlined
    def block(tensors, first, panel, height, _):
        data, start, weights, rows = T.meta_var(tensors[0])
        if ahead is not None:
            lines = T.alloc_buffer((2,), "int64")
            share(lines, first, height, rows)
        sums = T.alloc_buffer((height * width,), "float32", scope="local")
        for r in T.unroll(height):
            for v in T.unroll(vectors):
                sums[T.ramp(r * width + v * lanes, 1, lanes)] = T.Broadcast(T.float32(0), lanes)
        for kk in range(depth):
            if ahead is not None:
                ask(lines, weights, panel + 1, kk)
            for r in T.unroll(height):
                for v in T.unroll(vectors):
                    sums[T.ramp(r * width + v * lanes, 1, lanes)] = words.dot(
                        sums[T.ramp(r * width + v * lanes, 1, lanes)],
                        T.Broadcast(data[start + first + r, kk], lanes),
                        weights[panel, kk, T.ramp(v * lanes, 1, lanes)],
                    )
        for r in T.unroll(height):
            for v in T.unroll(vectors):
                column = T.meta_var(panel * width + v * lanes)
                stored(tensors[1], first + r, column, sums, r * width + v * lanes)

    return block


def _rounding(k, words):
    """For use in a kernel: `rounded(x, data, first, count)` turns rows of x into words."""
    step, even, depth = words.lanes, k - k % PAIR, words.depth(k)

    @inlined
    def vector(x, data, row, r, at):
        data[r, T.ramp(at // PAIR, 1, step // PAIR)] = words.rounded(x[row, T.ramp(at, 1, step)])

    @inlined
    def rounded(x, data, first, count):
        for r in range(count):
            for chunk in range(even // step):
                vector(x, data, first + r, r, chunk * step)
            if even >= step and even % step > 0:  # the last vector overlaps the one before
                vector(x, data, first + r, r, even - step)
            for pair in range((even if even < step else 0) // PAIR):
                at = T.meta_var(PAIR * pair)
                data[r, pair] = word(x[first + r, at], x[first + r, at + 1])
            if even < k:
                data[r, even // PAIR] = word(x[first + r, even], T.float32(0))
            for beyond in range(depth - -(-k // PAIR)):
                data[r, -(-k // PAIR) + beyond] = 0

    return rounded
