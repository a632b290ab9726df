"""Pairs of bfloat16 in 32-bit words: how they are rounded, and multiplied and added up.

A word holds two neighbours along K, the first one in its low half. An instruction multiplies both
with those of another word and adds the products to a float32. TVM's passes would turn bfloat16
operands into float32 before LLVM sees them; so words are int32, and the instructions come as LLVM
functions of their own, which are inlined.

AMX multiplies tiles: a tile of data has 16 rows of 16 words, one of weights 16 words along K for 16
columns, one of sums 16 rows and columns. It adds up the low halves and the high ones of 16 words
each before it adds them to a sum.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.script import tirx as T

from graphopt.targets.cpu.kernels.amx import TILE, Amx, amx_for

PAIR = 2
_DOT, _ROUND, _JOIN = "graphopt_bf16_dot", "graphopt_bf16_round", "graphopt_bf16_pair"
_LLVM = f"""
define <{{n}} x float> @{_DOT}(<{{n}} x float> %sum, <{{n}} x i32> %a, <{{n}} x i32> %b) {{{{
  %x = bitcast <{{n}} x i32> %a to <{{m}} x bfloat>
  %y = bitcast <{{n}} x i32> %b to <{{m}} x bfloat>
  %r = call <{{n}} x float> @{{dot}}(<{{n}} x float> %sum, <{{m}} x bfloat> %x, <{{m}} x bfloat> %y)
  ret <{{n}} x float> %r
}}}}
declare <{{n}} x float> @{{dot}}(<{{n}} x float>, <{{m}} x bfloat>, <{{m}} x bfloat>)
define <{{h}} x i32> @{_ROUND}(<{{n}} x float> %x) {{{{
  %narrow = fptrunc <{{n}} x float> %x to <{{n}} x bfloat>
  %words = bitcast <{{n}} x bfloat> %narrow to <{{h}} x i32>
  ret <{{h}} x i32> %words
}}}}
define <{{n}} x i32> @{_JOIN}(<{{n}} x float> %low, <{{n}} x float> %high) {{{{
  %x = shufflevector <{{n}} x float> %low, <{{n}} x float> %high, <{{m}} x i32> <{{places}}>
  %narrow = fptrunc <{{m}} x float> %x to <{{m}} x bfloat>
  %words = bitcast <{{m}} x bfloat> %narrow to <{{n}} x i32>
  ret <{{n}} x i32> %words
}}}}
"""


@dataclass(frozen=True)
class Words:
    """Vectors of words on CPUs that have an instruction for them.

    Attributes:
        lanes: words in a vector.
        instruction: LLVM's name of the one that multiplies and adds.
        tiles: AMX's instructions; None for CPUs without AMX.
    """

    lanes: int
    instruction: str
    tiles: Amx | None = None

    @property
    def name(self) -> str:
        """What multiplies, in short."""
        return "tdpbf16ps" if self.tiles else self.instruction.split(".")[3]

    def depth(self, k: int) -> int:
        """Words of a row of `k` numbers; whole tiles where there are tiles."""
        words = -(-k // PAIR)
        return -(-words // TILE) * TILE if self.tiles else words

    def stride(self, k: int) -> int:
        """Words from one row of `k` numbers to the next, in which whole vectors of floats fit.

        With tiles they are an odd number of cache lines, so that those of 16 rows are in as many
        sets of a cache: rows of 1024 numbers took 1.07 times as long without.
        """
        if self.tiles:
            return TILE * (self.depth(k) // TILE | 1)
        return -(-k // self.lanes) * self.lanes // PAIR

    @property
    def llvm(self) -> str:
        """The functions that kernels import (`T.attr(0, "pragma_import_llvm", …)`)."""
        lanes = self.lanes
        pairs = ", ".join(f"i32 {k}, i32 {k + lanes}" for k in range(lanes))
        sizes = {"h": lanes // PAIR, "n": lanes, "m": PAIR * lanes}
        return _LLVM.format(**sizes, dot=self.instruction, places=pairs)

    def dot(self, total: Any, data: Any, weights: Any) -> Any:
        """A float32 vector plus the products of two vectors of words."""
        return T.call_pure_extern(f"float32x{self.lanes}", _DOT, total, data, weights)

    def rounded(self, floats: Any) -> Any:
        """The words of a vector of `lanes` floats, half as many; ties to even, NaN stays NaN."""
        return T.call_pure_extern(f"int32x{self.lanes // PAIR}", _ROUND, floats)

    def paired(self, low: Any, high: Any) -> Any:
        """The words of the floats in the same lanes of two vectors, rounded as by `rounded`."""
        return T.call_pure_extern(f"int32x{self.lanes}", _JOIN, low, high)


def words_for(features: Collection[str], lanes: int) -> Words | None:
    """How a CPU with these instruction sets (Linux's names) does it; None if it has no fast way.

    Intel's CPUs from Sapphire Rapids on (AVX512-FP16) are made to do it by AMX: where that is
    hidden, the instruction for vectors takes longer than two products of float32.

    Args:
        lanes: float32 elements in one of its vectors.
    """
    if lanes == 16 and "avx512_bf16" in features:
        tiles = amx_for(features, "bf16")
        if tiles or "avx512_fp16" not in features:
            return Words(lanes, "llvm.x86.avx512bf16.dpbf16ps.512", tiles)
    if lanes == 4 and "bf16" in features:
        return Words(lanes, "llvm.aarch64.neon.bfdot.v4f32.v8bf16")
    return None


def word(low: Any, high: Any) -> Any:
    """Two floats rounded, ties to even; NaN stays NaN."""
    upper = _rounded_bits(high) << T.uint32(16)
    return T.reinterpret("int32", upper | _rounded_bits(low))


def _rounded_bits(value: Any) -> Any:
    bits = T.reinterpret("uint32", value)
    odd = (bits >> T.uint32(16)) & T.uint32(1)
    rounded = (bits + T.uint32(0x7FFF) + odd) >> T.uint32(16)
    is_nan = (bits & T.uint32(0x7FFFFFFF)) > T.uint32(0x7F800000)
    return T.Select(is_nan, T.uint32(0x7FC0), rounded)


def pair_rows(matrix: np.ndarray) -> np.ndarray:
    """float32[K, N] as int32[ceil(K / 2), N]: rows 2k and 2k + 1 in word k; zero beyond K."""
    k, n = matrix.shape
    padded = np.zeros((-(-k // PAIR) * PAIR, n), np.float32)
    padded[:k] = matrix
    bits = round_bits(padded).astype(np.uint32)
    return (bits[0::2] | bits[1::2] << np.uint32(16)).view(np.int32)


def round_bits(array: np.ndarray) -> np.ndarray:
    """float32 as the bits of bfloat16 (uint16): ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)
