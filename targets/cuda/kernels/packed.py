"""Constant weights as kernels of products read them: words of 32 bits."""

from __future__ import annotations

import numpy as np

from graphopt.targets.cuda.kernels.gemm import Math, packed_values

SUMS = 127


def pack_weights(weights: np.ndarray, math: Math) -> np.ndarray:
    """float32[K, N] as uint32[ceil(K / values of a word), N rounded up to 4]; the rest is zero.

    Not for "Int8" and "Codes", which `pack_codes` is for.
    """
    k, n = weights.shape
    packed = packed_values(math)
    full = np.zeros((-(-k // packed) * packed, -(-n // 4) * 4), np.float32)
    full[:k, :n] = weights
    bits = full.view(np.uint32)
    if packed == 2:
        halves = (
            full.astype(np.float16).view(np.uint16).astype(np.uint32)
            if math == "Fp16"
            else (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        )
        return np.ascontiguousarray(halves[0::2] | halves[1::2] << 16)
    return (bits + 0x1000) & np.uint32(0xFFFFE000) if math == "Tf32" else bits


def pack_codes(codes: np.ndarray, zero: int) -> np.ndarray:
    """int8[K, N] as uint32[ceil(K / 4) + 1, N rounded up to 4], the rest zero.

    The last row is what sums start from: codes of x are less 128 here, so that they stand for
    (code + 128 - zero) * scale. Where each row has a zero point of its own, those are left to the
    kernel, and `SUMS` in the place of `zero` makes the last row that of the sums of columns.
    """
    k, n = codes.shape
    words, pitch = -(-k // 4), -(-n // 4) * 4
    full = np.zeros((words * 4, pitch), np.int8)
    full[:k, :n] = codes
    packed = np.zeros((words + 1, pitch), np.uint32)
    grouped = full.view(np.uint8).reshape(words, 4, pitch).astype(np.uint32)
    for place in range(4):
        packed[:-1] |= grouped[:, place] << np.uint32(8 * place)
    packed[-1] = ((128 - zero) * full.sum(axis=0, dtype=np.int32)).astype(np.int32).view(np.uint32)
    return packed
