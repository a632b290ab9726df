"""Rows of floats as codes of 8 bits: in one range for all of them, or each in its own."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.script import tirx as T

from graphopt.ops.dynamic_matmul import LEAST_STEP, LEVELS
from graphopt.targets.cpu.kernels.folding import reducing
from graphopt.targets.cpu.kernels.panels import Emitted
from graphopt.targets.kernels.script import inlined

GROUP = 4  # bytes that one instruction multiplies and adds up in each int32
LANES = 16
HIGHEST = 255  # code
_INFINITY = 0x7F800000  # bits of it; a NaN has more, whatever its sign


@dataclass(frozen=True)
class Quantization:
    """Of the data: q = clamp(round(x / scale) + zero, 0, 255), ties to even, as ONNX says."""

    scale: float
    zero: int


@dataclass(frozen=True)
class RowQuantization:
    """Of the data: as `Quantization`, with a scale and a zero point of each row's own.

    They are those of `graphopt::DynamicMatMul`: `levels` scales reach from the least of a row and
    0 to the largest and 0.
    """

    levels: int = LEVELS


def quantized(x: Any, to: Quantization, count: int) -> Any:
    """`count` elements as uint8."""
    # A product may round to the neighbour of what the quotient rounds to, but takes a tenth.
    return coded(x, T.float32(1 / np.float32(to.scale)), T.float32(to.zero), count)


def coded(x: Any, inverse: Any, zero: Any, count: int, dtype: str = "uint8") -> Any:
    """`count` elements as numbers of 8 bits, on x86.

    There one instruction rounds and converts, and gives the least integer for all that is less.
    """
    lanes = f"x{count}" if count > 1 else ""
    inverse, zero, most, none = (
        T.Broadcast(value, count) if count > 1 else value
        for value in (inverse, T.Cast("int32", zero), T.float32(HIGHEST) - zero, T.int32(0))
    )
    rounded = T.call_llvm_pure_intrin(f"int32{lanes}", "llvm.lrint", T.min(x * inverse, most))
    return T.Cast(f"{dtype}{lanes}", T.max(rounded + zero, none))


def coding(k: int) -> Emitted:
    """For use in a kernel: `code(x, q, row, r, inverse, zero)` makes q[r] of x[row], k elements.

    What q has beyond, up to a whole group, is 0.
    """
    depth = -(-k // GROUP)

    @inlined
    def vector(x, q, row, r, at, inverse, zero):
        q[r, T.ramp(at, 1, LANES)] = coded(
            x[row, T.ramp(at, 1, LANES)], inverse, zero, LANES, q.dtype
        )

    @inlined
    def code(x, q, row, r, inverse, zero):
        for chunk in range(k // LANES):
            vector(x, q, row, r, chunk * LANES, inverse, zero)
        if k > LANES and k % LANES > 0:  # the last vector overlaps the one before
            vector(x, q, row, r, k - LANES, inverse, zero)
        for c in range(k if k < LANES else 0):
            q[r, c] = coded(x[row, c], inverse, zero, 1, q.dtype)
        for c in range(depth * GROUP - k):
            q[r, k + c] = T.Cast(q.dtype, 0)

    return code


def ranging(k: int, levels: int, lanes: int = LANES) -> Emitted:
    """For use in a kernel: `find(x, row, found)` sets found[3] to the range of x[row], k elements.

    The distance of two codes, of which the range has `levels`; its reciprocal; the zero point. The
    distance is NaN for a row that is not finite, which makes all of its products NaN. Vectors of
    the target have `lanes`.
    """
    # Of vectors, as one alone would wait for its last result; two of 8 lanes are 16.
    sets = max(1, min(4 if lanes == LANES else 1, k // LANES))

    @inlined
    def widen(high, low, bits, x, row, at, place):
        lanes = T.meta_var(T.ramp(place * LANES, 1, LANES))
        own = T.meta_var(T.ramp(at, 1, LANES))
        magnitude = T.meta_var(T.Broadcast(T.int32(0x7FFFFFFF), LANES))
        high[lanes] = T.max(high[lanes], x[row, own])
        low[lanes] = T.min(low[lanes], x[row, own])
        bits[lanes] = T.max(bits[lanes], T.reinterpret("int32x16", x[row, own]) & magnitude)

    @inlined
    def widen_by_one(high, low, bits, x, row, at):
        high[0] = T.max(high[0], x[row, at])
        low[0] = T.min(low[0], x[row, at])
        bits[0] = T.max(bits[0], T.reinterpret("int32", x[row, at]) & T.int32(0x7FFFFFFF))

    @inlined
    def reduced(acc, combined):
        for place in T.unroll(1, sets):
            acc[T.ramp(0, 1, LANES)] = combined(
                acc[T.ramp(0, 1, LANES)], acc[T.ramp(place * LANES, 1, LANES)]
            )
        reducing(LANES, combined)(acc, 0)

    @inlined
    def find(x, row, found):
        high = T.alloc_buffer((sets * LANES,), "float32", scope="local")
        low = T.alloc_buffer((sets * LANES,), "float32", scope="local")
        bits = T.alloc_buffer((sets * LANES,), "int32", scope="local")
        for place in T.unroll(sets):
            high[T.ramp(place * LANES, 1, LANES)] = T.Broadcast(T.float32(0), LANES)
            low[T.ramp(place * LANES, 1, LANES)] = T.Broadcast(T.float32(0), LANES)
            bits[T.ramp(place * LANES, 1, LANES)] = T.Broadcast(T.int32(0), LANES)
        for chunk in range(k // (LANES * sets)):
            for place in T.unroll(sets):
                widen(high, low, bits, x, row, (chunk * sets + place) * LANES, place)
        for place in T.unroll(k // LANES % sets):
            at = T.meta_var(k // (LANES * sets) * sets * LANES + place * LANES)
            widen(high, low, bits, x, row, at, place)
        if k > LANES and k % LANES > 0:
            widen(high, low, bits, x, row, k - LANES, 0)
        for c in range(k if k < LANES else 0):
            widen_by_one(high, low, bits, x, row, c)
        reduced(high, T.max)
        reduced(low, T.min)
        reduced(bits, T.max)
        # Halves, which are exact, so that no spread of finite numbers is infinite.
        found[0] = T.max(
            (high[0] * T.float32(0.5) - low[0] * T.float32(0.5)) * T.float32(2 / levels),
            T.float32(LEAST_STEP),
        )
        found[1] = T.float32(1) / found[0]
        found[2] = T.min(
            T.call_llvm_pure_intrin("float32", "llvm.nearbyint", -low[0] / found[0]),
            T.float32(HIGHEST),
        )
        if bits[0] >= T.int32(_INFINITY):
            found[0] = T.float32("nan")
            found[1] = T.float32(0)
            found[2] = T.float32(0)

    return find
