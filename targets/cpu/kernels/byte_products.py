"""How vectors multiply bytes: unsigned ones of the data, signed ones of the weights, sums in int32.

AVX512-VNNI adds four products to a sum by one instruction. AVX2's product of bytes adds two of them
in 16 bits, which saturate; its product of pairs of 16 bits (`vpmaddwd`) does not, and multiplies
twice as many numbers as one in float32. So codes of data are widened once, and weights as they are
read, for all rows of a block. Both add up the same integers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from graphopt.targets.kernels.script import inlined

VNNI_LANES = 16  # without AVX-512 there are 8, and no VNNI


@dataclass(frozen=True)
class ByteProducts:
    """How vectors of `lanes` sums do it.

    Attributes:
        name: of the instruction, as in `analysis.cost`.
        group: codes that are multiplied and added up at once, in a word of 32 bits of data.
        stored: the integer that holds as many weights.
        read: a vector of such integers as words to multiply.
        dot: sums, and words of data and of weights; as the next sums.
    """

    name: str
    lanes: int
    group: int
    stored: str
    read: Callable[[Any], Any]
    dot: Callable[[Any, Any, Any], Any]

    @property
    def widens(self) -> bool:
        """Whether codes of data have 16 bits."""
        return self.group == 2


def _four_bytes(total: Any, data: Any, weights: Any) -> Any:
    pair = T.reinterpret("int8x64", data), T.reinterpret("int8x64", weights)
    return T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpbusd.512", total, *pair)


def _widened(weights: Any) -> Any:
    return T.reinterpret("int32x8", T.Cast("int16x16", T.reinterpret("int8x16", weights)))


def _two_words(total: Any, data: Any, weights: Any) -> Any:
    pair = T.reinterpret("int16x16", data), T.reinterpret("int16x16", weights)
    return total + T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", *pair)


_VNNI = ByteProducts("vpdpbusd", VNNI_LANES, 4, "int32", lambda weights: weights, _four_bytes)
_AVX2 = ByteProducts("vpmaddwd", 8, 2, "int16", _widened, _two_words)


def byte_products(lanes: int) -> ByteProducts:
    """Those of targets that multiply bytes, by how many float32 elements a vector of theirs has."""
    return _VNNI if lanes == VNNI_LANES else _AVX2


@inlined
def widen(codes, first, count, wide):
    """wide[:count] becomes codes[first : first + count], in 16 bits."""
    for r in range(count):
        for c in range(wide.shape[1]):
            wide[r, c] = T.Cast("uint16", codes[first + r, c])
