"""GEMM in 8 bits with AVX512-VNNI: float32 or 8 bits in and out, int32 sums that are exact.

`vpdpbusd` adds four products of an unsigned and a signed byte to each int32 without saturating, so
the unsigned operand is the data and the signed one the weights. The data's zero point is taken out
through the value that sums start from: sum((q - zero) * w) = sum(q * w) - zero * sum(w).

Scale and zero point of the data are constants, or each row has its own, found as it is rounded.
"""

from functools import cache

import numpy as np
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.panels import Emitted, GemmParams, by_blocks, default_params
from graphopt.targets.cpu.kernels.row_codes import (
    GROUP,
    LANES,
    Quantization,
    RowQuantization,
    coding,
    quantized,
    ranging,
)
from graphopt.targets.kernels import script
from graphopt.targets.kernels.epilogue import PLAIN, Epilogue
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes

_ROWS = 96  # rows of data quantized at a time: 48 KB of bytes for K = 512


Rounding = Quantization | RowQuantization


def int8_params(n: int) -> GemmParams:
    """Parameters for `n` columns."""
    return default_params(n, LANES)


def pack_int8(weights: np.ndarray, params: GemmParams) -> np.ndarray:
    """int8[K, N] as int32[panels, ceil(K / 4), width], each of 4 bytes along K; zero beyond."""
    k, n = weights.shape
    panels, depth = params.panels(n), -(-k // GROUP)
    padded = np.zeros((depth * GROUP, panels * params.width), np.int8)
    padded[:k, :n] = weights
    split = padded.reshape(depth, GROUP, panels, params.width).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(split).view(np.int32).reshape(panels, depth, params.width)


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
) -> PrimFunc:
    """Kernel (x[M, k], weights, start, scale[panels * width], bias[panels * width], columns,
    *operands) -> y[M, n].

    y = scale * (start + q @ weights) + bias, where q is x, quantized, after the epilogue as for
    `gemm`; x, scale, bias and y are float32, M is symbolic; weights and start are packed. A NaN in
    x becomes some q. For targets with AVX512-VNNI.

    With `RowQuantization` y = scale * step * (zero * start + q @ weights) + bias, where step and
    zero belong to the row, and start is that for a zero point of 1.

    Args:
        takes_codes: x is q itself, uint8; k is a multiple of GROUP.
        result: y is uint8, quantized so.

    Raises:
        ValueError: `k` does not suit codes.
    """
    by_row = isinstance(quantization, RowQuantization)
    if takes_codes and (k % GROUP or by_row):
        raise ValueError(f"rows of {k} codes are not of whole groups of {GROUP}, with one scale")
    width, panels, depth = params.width, params.panels(n), -(-k // GROUP)
    align, constants = element_bytes("float32"), max(1, epilogue.activation.columns)
    taken, given = "uint8" if takes_codes else "float32", "uint8" if result else "float32"
    quantize, store = _rounding(k, quantization), _storing(n, epilogue, result)
    block = _block(depth, params, takes_codes, by_row, store)
    visit = by_blocks(params, panels, block)

    @script.prim_func(private=True, s_tir=True)
    def int8_gemm(
        x: T.handle, w: T.handle, z: T.handle, s: T.handle, b: T.handle,
        c: T.handle, p: T.handle, q: T.handle, y: T.handle
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        m, fewer, least = T.int64(), T.int64(), T.int64()
        left = T.match_buffer(x, (m, k), taken, align=element_bytes(taken))
        right = T.match_buffer(w, (panels, depth, width), "int32", align=align)
        begin = T.match_buffer(z, (panels * width,), "int32", align=align)
        factor = T.match_buffer(s, (panels * width,), "float32", align=align)
        bias = T.match_buffer(b, (panels * width,), "float32", align=align)
        columns = T.match_buffer(c, (constants, panels * width), "float32", align=align)
        first = T.match_buffer(p, (epilogue.rows(0, m, fewer), n), "float32", align=align)
        second = T.match_buffer(q, (epilogue.rows(1, m, least), n), "float32", align=align)
        out = T.match_buffer(y, (m, n), given, align=element_bytes(given))
        others = T.meta_var((right, begin, factor, bias, (columns, first, second), out))
        for batch in range((m + _ROWS - 1) // _ROWS):
            count = T.min(T.int64(_ROWS), m - batch * _ROWS)
            start_row = T.meta_var(batch * _ROWS)
            if takes_codes:
                words = T.decl_buffer((m, depth), "int32", data=left.data, align=1)
                visit((words, None, start_row, *others), count)
            else:
                codes = T.alloc_buffer((_ROWS, depth * GROUP), "uint8")
                words = T.decl_buffer((_ROWS, depth), "int32", data=codes.data, align=align)
                steps = T.alloc_buffer((_ROWS if by_row else 1,), "float32")
                zeros = T.alloc_buffer((_ROWS if by_row else 1,), "int32")
                quantize(left, codes, start_row, count, steps, zeros)
                visit((words, (steps, zeros), start_row, *others), count)

    return without_parameters(int8_gemm, *epilogue.unused)


def _rounding(k: int, rounding: Rounding) -> Emitted:
    """For use in a kernel: `quantize(x, q, first, count, steps, zeros)` rounds rows of x.

    Where each row has its own range, that is kept in `steps` and `zeros`.
    """
    levels = rounding.levels if isinstance(rounding, RowQuantization) else 1
    code, find = coding(k), ranging(k, levels)

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


def _storing(n: int, epilogue: Epilogue, result: Quantization | None) -> Emitted:
    """For use in a kernel: `store(y, row, column, values, at, given)` writes one vector.

    As that of `panels`, for values that may become codes.
    """

    @inlined
    def store(y, row, column, values, at, given):
        if column + LANES <= n:
            for lane in T.vectorized(LANES):
                values[at + lane] = epilogue(values[at + lane], given, row, column + lane)
            if result is not None:
                y[row, T.ramp(column, 1, LANES)] = quantized(
                    values[T.ramp(at, 1, LANES)], result, LANES
                )
            else:
                for lane in T.vectorized(LANES):
                    y[row, column + lane] = values[at + lane]
        else:
            if epilogue.before > 0:
                for lane in range(LANES):
                    if column + lane < n:
                        values[at + lane] = epilogue.begin(
                            values[at + lane], given, row, column + lane
                        )
            for lane in T.vectorized(LANES):
                values[at + lane] = epilogue.activate(values[at + lane], given, column + lane)
            for lane in range(LANES):
                if column + lane < n:
                    values[at + lane] = epilogue.finish(
                        values[at + lane], given, row, column + lane
                    )
                    if result is not None:
                        y[row, column + lane] = quantized(values[at + lane], result, 1)
                    else:
                        y[row, column + lane] = values[at + lane]

    return store


def _block(
    depth: int, params: GemmParams, takes_codes: bool, by_row: bool, store: Emitted
) -> Emitted:
    """For use in a kernel: `block(tensors, row, panel, height, _)` computes rows of a panel."""
    width, vectors = params.width, params.vectors

    def place(first, row):
        """Where the codes of a row are: rounded ones are kept for some rows at a time."""
        return first + row if takes_codes else row

    def dot(total, data, weights):
        bytes_ = T.reinterpret("int8x64", data), T.reinterpret("int8x64", weights)
        return T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpbusd.512", total, *bytes_)

    def begin(start, own, row):
        """What the sums of a row start from."""
        return start * T.Broadcast(own[1][row], LANES) if by_row else start

    def scaled(factor, own, row):
        """What the sums of a row are multiplied by."""
        return factor * own[0][row] if by_row else factor

    @inlined
    def sums(words, own, w, start, acc, row, at, panel, height):
        for r in T.unroll(height):
            for v in T.unroll(vectors):
                acc[T.ramp(r * width + v * LANES, 1, LANES)] = begin(
                    start[T.ramp(panel * width + v * LANES, 1, LANES)], own, row + r
                )
        for kk in range(depth):
            for r in T.unroll(height):
                for v in T.unroll(vectors):
                    acc[T.ramp(r * width + v * LANES, 1, LANES)] = dot(
                        acc[T.ramp(r * width + v * LANES, 1, LANES)],
                        T.Broadcast(words[at + r, kk], LANES),
                        w[panel, kk, T.ramp(v * LANES, 1, LANES)],
                    )

    @inlined
    def block(tensors, row, panel, height, _):
        words, own, first, w, start, factor, b, given, y = T.meta_var(tensors)
        acc = T.alloc_buffer((height * width,), "int32", scope="local")
        out = T.alloc_buffer((height * width,), "float32", scope="local")
        sums(words, own, w, start, acc, row, place(first, row), panel, height)
        for r in T.unroll(height):
            for v in T.unroll(vectors):
                for lane in T.vectorized(LANES):
                    out[r * width + v * LANES + lane] = (
                        T.Cast("float32", acc[r * width + v * LANES + lane])
                        * scaled(factor[panel * width + v * LANES + lane], own, row + r)
                        + b[panel * width + v * LANES + lane]
                    )
                column = T.meta_var(panel * width + v * LANES)
                store(y, first + row + r, column, out, r * width + v * LANES, given)

    return block
