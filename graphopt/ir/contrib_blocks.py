"""Layers and tables that ONNX Runtime stores in 2, 4 or 8 bits, a scale for each block of elements.

The weights of a layer become floats: it is computed in floats in any case, and every rewrite of a
layer applies. Tables keep their codes; rows become floats as they are looked up.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.ir.contrib_steps import Adapter, Steps
from graphopt.ir.graph import Value
from graphopt.ir.types import dtype_to_numpy

# What the 16 codes of bitsandbytes stand for: FP4 (a sign, two bits of exponent, one of mantissa,
# divided by 12) and NF4 (quantiles of the normal distribution, QLoRA, appendix E).
_FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / 12
_NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
_CODEBOOKS = (np.concatenate([_FP4, -_FP4]), np.array(_NF4, np.float32))


def _constant(do: Steps, slot: int, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """The constant of input `slot`; with `shape`, it must have as many elements."""
    array = do.value(slot).const
    if array is None:
        raise do.call.unsupported(f"its input {slot} is no constant")
    if shape is None:
        return array
    if array.size != np.prod(shape):
        raise do.call.invalid(f"input {slot} has {array.size} elements instead of those of {shape}")
    return array.reshape(shape)


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """uint8[..., n] as codes uint8[..., n * 8 / bits], that of the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1)


def _given(do: Steps, attrs: dict[str, Any], *names: str) -> list[int]:
    """Attributes that must be there, positive."""
    for name in names:
        if attrs.get(name, 0) <= 0:
            raise do.call.invalid(f"attribute {name!r} must be a positive number")
    return [attrs[name] for name in names]


def _layer(do: Steps, columns: np.ndarray, bias: Value | None = None) -> Value:
    """The product with `columns` [outputs, inputs], in the dtype of the input."""
    weight = np.ascontiguousarray(columns.T, dtype_to_numpy(do.value(0).dtype))
    product = do("MatMul", do.value(0), do.graph.constant(weight))
    return product if bias is None else do("Add", product, bias)


def _matmul_nbits(do: Steps, attrs: dict[str, Any]) -> Value:
    width, outputs, block = _given(do, attrs, "K", "N", "block_size")
    bits = attrs.get("bits", 4)
    if bits not in (2, 4, 8) or do.input(4) is not None:
        raise do.call.unsupported(
            f"its weights have {bits} bits, or blocks in an order of their own"
        )
    blocks = -(-width // block)
    shape = (outputs, blocks)
    codes = _unpacked(_constant(do, 1, (*shape, block * bits // 8)), bits).astype(np.float32)
    zeros = np.full(shape, 2 ** (bits - 1), np.float32)
    if do.input(3) is not None:
        zeros = _constant(do, 3)
        if zeros.dtype == np.uint8:
            packed = _constant(do, 3, (outputs, -(-blocks * bits // 8)))
            zeros = _unpacked(packed, bits)[:, :blocks]
        zeros = zeros.reshape(shape).astype(np.float32)
    scales = _constant(do, 2, shape).astype(np.float32)
    weights = (codes.reshape(*shape, block) - zeros[..., None]) * scales[..., None]
    return _layer(do, weights.reshape(outputs, -1)[:, :width], do.input(5))


def _matmul_bnb4(do: Steps, attrs: dict[str, Any]) -> Value:
    width, outputs, block = _given(do, attrs, "K", "N", "block_size")
    kind = attrs.get("quant_type", 1)
    if kind not in (0, 1) or not attrs.get("transB", 1):
        raise do.call.unsupported("its codes are neither FP4 nor NF4, or lie by inputs")
    size = width * outputs
    packed = _constant(do, 1, (-(-size // 2),))
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:size]
    scales = _constant(do, 2, (-(-size // block),)).astype(np.float32)
    weights = _CODEBOOKS[kind][codes] * np.repeat(scales, block)[:size]
    return _layer(do, weights.reshape(outputs, width))


def _gather_blocks(do: Steps, attrs: dict[str, Any]) -> Value:
    """Gather(DequantizeLinear(codes, scales, zeros), ids)"""
    codes, scales = _constant(do, 0), _constant(do, 2)
    bits, block = attrs.get("bits", 4), attrs.get("block_size", 128)
    zeros = None if do.input(3) is None else _constant(do, 3)
    if codes.dtype == np.uint8:
        if bits not in (2, 4, 8):
            raise do.call.unsupported(f"its rows have {bits} bits")
        codes = _unpacked(codes, bits)
        if zeros is None:
            zeros = np.full(scales.shape, 2 ** (bits - 1), np.uint8)
        else:
            zeros = _unpacked(zeros, bits)[..., : scales.shape[-1]]
    axis = attrs.get("quantize_axis", 1)
    if not -codes.ndim <= axis < codes.ndim:
        raise do.call.invalid(f"quantize_axis {axis} is out of range")
    axis %= codes.ndim
    blocks = -(-codes.shape[axis] // block)
    if scales.shape != codes.shape[:axis] + (blocks,) + codes.shape[axis + 1 :]:
        raise do.call.invalid(f"input 2 must have a scale for each block of {block} of input 0")
    per_row = codes.ndim == 2 and axis == 1 and blocks == 1
    if do.graph.opset() < 21 and not (per_row and codes.dtype == np.uint8):
        raise do.call.unsupported("its blocks take opset 21 of ONNX; give the model in that")
    parts = [scales] if zeros is None else [scales, zeros]
    if per_row:
        parts = [part.reshape(-1) for part in parts]
    how = {"axis": 0} if per_row else {"axis": axis, "block_size": block}
    table = do("DequantizeLinear", *map(do.graph.constant, (codes, *parts)), **how)
    return do("Gather", table, do.value(1), axis=attrs.get("gather_axis", 0))


ADAPTERS: dict[str, Adapter] = {
    "GatherBlockQuantized": _gather_blocks,
    "MatMulBnb4": _matmul_bnb4,
    "MatMulNBits": _matmul_nbits,
}
