"""GEMM in 8 bits: float32 or 8 bits in and out, int32 sums that are exact.

`vpdpbusd` (AVX512-VNNI) adds four products of an unsigned and a signed byte to each int32 without
saturating, so the unsigned operand is the data and the signed one the weights; with AVX2 pairs are
multiplied in 16 bits (`byte_products`). The data's zero point is taken out through the value that
sums start from: sum((q - zero) * w) = sum(q * w) - zero * sum(w). With AMX `tdpbusd` adds up the
same for 16 rows and columns; integers have one sum only, so which of the two computes a row changes
nothing, and one packing of the weights serves both.

Scale and zero point of the data are constants, or each row has its own, found as it is rounded.
"""

import math
from functools import cache

import numpy as np
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.amx import TILE, Amx, configuring
from graphopt.targets.cpu.kernels.byte_products import VNNI_LANES, byte_products, widen
from graphopt.targets.cpu.kernels.int8_blocks import Int8Blocks
from graphopt.targets.cpu.kernels.panels import (
    Emitted,
    GemmParams,
    applying,
    by_blocks,
    default_params,
    storing,
    vectors_across,
)
from graphopt.targets.cpu.kernels.row_codes import (
    GROUP,
    Quantization,
    RowQuantization,
    coding,
    quantized,
    ranging,
)
from graphopt.targets.cpu.kernels.tile_products import packed_depth, tile_params
from graphopt.targets.kernels import script
from graphopt.targets.kernels.epilogue import PLAIN, Epilogue
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes

_ROWS = 96  # rows of data quantized at a time: 48 KB of bytes for K = 512
_CONFIGURING = 300
"""Cycles to configure AMX, multiply two tiles and release it (Granite Rapids, measured)."""

Rounding = Quantization | RowQuantization


def int8_params(n: int, amx: Amx | None = None, lanes: int = VNNI_LANES) -> GemmParams:
    """Parameters for `n` columns, by vectors of `lanes` sums."""
    if amx is not None:
        return tile_params(n)
    if not byte_products(lanes).widens:
        return default_params(n, lanes)
    # A product needs a register before it is added, so there are fewer sums than of floats; with
    # them 4, 5 and 6 rows are as fast.
    vectors = vectors_across(n, lanes)
    return GemmParams(lanes, vectors, 8 if vectors == 1 else 4)


def pack_int8(weights: np.ndarray, params: GemmParams, amx: Amx | None = None) -> np.ndarray:
    """int8[K, N] as int32[panels, depth, width], each of 4 bytes along K; zero beyond.

    `depth` is ceil(K / 4), or of whole tiles with `amx`: then zeros come before the last tile's.
    Where pairs are multiplied (`byte_products`), it is twice that, and int16.
    """
    k, n = weights.shape
    panels, words = params.panels(n), -(-k // GROUP)
    padded = np.zeros((words, GROUP, panels * params.width), np.int8)
    padded.reshape(words * GROUP, -1)[:k, :n] = weights
    if amx is not None:
        whole = words - words % TILE if words > TILE else words
        padded = np.insert(padded, [whole] * (packed_depth(words) - words), 0, axis=0)
    by = byte_products(params.lanes)
    split = padded.reshape(-1, by.group, panels, params.width).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(split).view(by.stored).reshape(panels, -1, params.width)


def pack_start(weights: np.ndarray, zero: int, params: GemmParams) -> np.ndarray:
    """What the sums of int8[K, N] start from, as int32[panels * width]."""
    n = weights.shape[1]
    start = np.zeros(params.panels(n) * params.width, np.int32)
    start[:n] = -zero * weights.astype(np.int64).sum(axis=0)
    return start


@cache
def int8_gemm(
    k: int,
    n: int,
    quantization: Rounding,
    params: GemmParams,
    epilogue: Epilogue = PLAIN,
    takes_codes: bool = False,
    result: Quantization | None = None,
    amx: Amx | None = None,
) -> PrimFunc:
    """Kernel (x[M, k], weights, start, scale[panels * width], bias[panels * width], columns,
    *operands) -> y[M, n].

    y = scale * (start + q @ weights) + bias, where q is x, quantized, after the epilogue as for
    `gemm`; x, scale, bias and y are float32, M is symbolic; weights and start are packed. A NaN in
    x becomes some q. For targets that `byte_products` knows, by the lanes of `params`, and with AMX
    if `amx` is given, also to `pack_int8`.

    With `RowQuantization` y = scale * step * (zero * start + q @ weights) + bias, where step and
    zero belong to the row, and start is that for a zero point of 1.

    Args:
        takes_codes: x is q itself, uint8; k is a multiple of GROUP.
        result: y is uint8, quantized so; n is a multiple of GROUP. (LLVM 22 writes four bytes for
            the last one of a row if that is alone in its vector.)

    Raises:
        ValueError: `k` or `n` does not suit codes.
    """
    by_row = isinstance(quantization, RowQuantization)
    if takes_codes and (k % GROUP or by_row):
        raise ValueError(f"rows of {k} codes are not of whole groups of {GROUP}, with one scale")
    if result and n % GROUP:
        raise ValueError(f"rows of {n} codes are not of whole groups of {GROUP}")
    width, panels, depth = params.width, params.panels(n), -(-k // GROUP)
    packed = depth if amx is None else packed_depth(depth)
    align, constants = element_bytes("float32"), max(1, epilogue.activation.columns)
    taken, given = "uint8" if takes_codes else "float32", "uint8" if result else "float32"
    by, whole = byte_products(params.lanes), packed * GROUP
    size = element_bytes(by.stored)
    depth, packed = depth * GROUP // by.group, packed * GROUP // by.group
    quantize, store = _rounding(k, quantization, by.lanes), _storing(n, by.lanes, epilogue, result)
    some, in_place = _ROWS * by.group // GROUP, takes_codes and not by.widens
    blocks = Int8Blocks(depth, packed, params, in_place, by_row, store)
    configure, visit, release = _products(n, blocks, amx, least_rows(k, n))

    @script.prim_func(private=True, s_tir=True)
    def int8_gemm(
        x: T.handle, w: T.handle, z: T.handle, s: T.handle, b: T.handle,
        c: T.handle, p: T.handle, q: T.handle, y: T.handle
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        m, fewer, least = T.int64(), T.int64(), T.int64()
        left = T.match_buffer(x, (m, k), taken, align=element_bytes(taken))
        right = T.match_buffer(w, (panels, packed, width), by.stored, align=size)
        begin = T.match_buffer(z, (panels * width,), "int32", align=align)
        factor = T.match_buffer(s, (panels * width,), "float32", align=align)
        bias = T.match_buffer(b, (panels * width,), "float32", align=align)
        columns = T.match_buffer(c, (constants, panels * width), "float32", align=align)
        first = T.match_buffer(p, (epilogue.rows(0, m, fewer), n), "float32", align=align)
        second = T.match_buffer(q, (epilogue.rows(1, m, least), n), "float32", align=align)
        out = T.match_buffer(y, (m, n), given, align=element_bytes(given))
        results = T.meta_var((factor, bias, (columns, first, second), out))
        configure(m)
        for batch in range((m + some - 1) // some):
            count = T.min(T.int64(some), m - batch * some)
            start_row = T.meta_var(batch * some)
            if in_place:
                words = T.decl_buffer((m, depth), "int32", data=left.data, align=1)
                visit((words, None, start_row, right, begin, results), m, count, start_row)
            else:
                codes = T.alloc_buffer((some, whole), "uint16" if by.widens else "uint8")
                words = T.decl_buffer((some, packed), "int32", data=codes.data, align=align)
                steps = T.alloc_buffer((some if by_row else 1,), "float32")
                zeros = T.alloc_buffer((some if by_row else 1,), "int32")
                if takes_codes:
                    widen(left, start_row, count, codes)
                else:
                    quantize(left, codes, start_row, count, steps, zeros)
                own = T.meta_var((steps, zeros))
                visit((words, own, start_row, right, begin, results), m, count, 0)
        release(m)

    return without_parameters(int8_gemm, *epilogue.unused)


def _rounding(k: int, rounding: Rounding, lanes: int) -> Emitted:
    """For use in a kernel: `quantize(x, q, first, count, steps, zeros)` rounds rows of x.

    Where each row has its own range, that is kept in `steps` and `zeros`.
    """
    levels = rounding.levels if isinstance(rounding, RowQuantization) else 1
    code, find = coding(k), ranging(k, levels, lanes)

    @inlined
    def quantize(x, q, first, count, steps, zeros):
        if isinstance(rounding, RowQuantization):
            for r in range(count):
                found = T.alloc_buffer((3,), "float32", scope="local")
                find(x, first + r, found)
                steps[r] = found[0]
                zeros[r] = T.Cast("int32", found[2])
                code(x, q, first + r, r, found[1], found[2])
        else:
            inverse = T.meta_var(T.float32(1 / np.float32(rounding.scale)))
            for r in range(count):
                code(x, q, first + r, r, inverse, T.float32(rounding.zero))

    return quantize


def _storing(n: int, lanes: int, epilogue: Epilogue, result: Quantization | None) -> Emitted:
    """For use in a kernel: `store(y, row, column, values, at, given)` writes one vector.

    As that of `panels`, or for values that become codes.
    """
    if result is None:
        return storing(n, lanes, epilogue)
    apply = applying(n, lanes, epilogue)

    @inlined
    def store(y, row, column, values, at, given):
        apply(values, at, row, column, given)
        if column + lanes <= n:
            y[row, T.ramp(column, 1, lanes)] = quantized(
                values[T.ramp(at, 1, lanes)], result, lanes
            )
        elif column < n:
            for lane in range(n % lanes):
                y[row, column + lane] = quantized(values[at + lane], result, 1)

    return store


def least_rows(k: int, n: int) -> int:
    """Rows from which tiles take less time than vectors.

    In a cycle two units multiply 64 bytes each, tiles 1024 of 16 rows, and 52 bytes of weights
    come from the second-level cache.
    """
    weights = k * n
    return math.ceil(128 * (_CONFIGURING / weights + 1 / 52))


def _products(
    n: int, blocks: Int8Blocks, amx: Amx | None, least: int
) -> tuple[Emitted, Emitted, Emitted]:
    """For use in a kernel of `rows`: `configure(rows)`, then `visit(tensors, rows, count, before)`
    for `count` of them, `release(rows)` in the end. `before` is as for `by_tiles`.
    """
    # A sum waits one cycle for the one before, so that a panel has enough of them for one row.
    by_vectors = by_blocks(blocks.params, blocks.params.panels(n), blocks.of_vectors(), spans=False)
    if amx is None:

        @inlined
        def nothing(rows):
            pass

        @inlined
        def visit(tensors, rows, count, before):
            by_vectors(tensors, count)

        return nothing, visit, nothing

    by_tiles, (begin, end) = blocks.of_tiles(amx, n), configuring(amx, blocks.words)

    @inlined
    def configure(rows):
        if rows >= least:
            begin(rows)

    @inlined
    def release(rows):
        if rows >= least:
            end(rows)

    @inlined
    def visit_either(tensors, rows, count, before):
        if rows >= least:
            by_tiles(tensors, count, before)
        else:
            by_vectors(tensors, count)

    return configure, visit_either, release
