"""AMX: eight registers of 16 rows of 64 bytes, and how a kernel configures them.

Tiles 0 to 3 hold sums, 4 and 5 data, 6 and 7 weights. The number of a tile is part of an
instruction; how many rows it has, and of how many bytes, is configured once for a kernel.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from graphopt.targets.cpu.kernels.panels import Emitted
from graphopt.targets.kernels.script import inlined

TILE = 16  # rows of a tile at most, and words of 4 bytes in each
SUMS, DATA, WEIGHTS, END = 0, 4, 6, 8  # the first tile of each
WORD = 4  # bytes


@dataclass(frozen=True)
class Amx:
    """Instructions of AMX, as statements of a kernel.

    Attributes:
        prefix: what their names begin with; those of another name than LLVM's are C functions.
    """

    prefix: str = "llvm.x86."

    def __call__(self, instruction: str, *arguments: Any) -> None:
        call = T.call_llvm_intrin if self.prefix.startswith("llvm.") else T.call_extern
        T.evaluate(call("void", self.prefix + instruction, *arguments))


def amx_for(features: Collection[str], operands: str) -> Amx | None:
    """AMX for "int8" or "bf16" where a CPU with these instruction sets (Linux's names) has it."""
    return Amx() if {"amx_tile", f"amx_{operands}"} <= set(features) else None


def tile_number(tile: Any) -> Any:
    """A tile as instructions name it."""
    return T.Cast("int8", tile)


def configuring(amx: Amx, words: int) -> tuple[Emitted, Emitted]:
    """For use in a kernel: `configure(rows)` before its tiles, `release(rows)` after.

    Tiles of sums and data have 16 rows, or `rows` if those are fewer. A row of data has 16 words,
    or `words` if those are fewer, and tiles of weights have as many rows.
    """
    deep = min(words, TILE)

    @inlined
    def shape(config, tile, rows, bytes_):
        config[16 + 2 * tile] = T.uint8(bytes_)  # two bytes, the second of which stays 0
        config[48 + tile] = T.Cast("uint8", rows)

    @inlined
    def configure(rows):
        if rows > 0:  # tiles of no rows are an error
            config = T.alloc_buffer((64,), "uint8", scope="local")
            for i in range(64):
                config[i] = T.uint8(0)
            config[0] = T.uint8(1)  # the palette
            for tile in T.unroll(SUMS, DATA):
                shape(config, tile, T.min(rows, T.int64(TILE)), WORD * TILE)
            for tile in T.unroll(DATA, WEIGHTS):
                shape(config, tile, T.min(rows, T.int64(TILE)), WORD * deep)
            for tile in T.unroll(WEIGHTS, END):
                shape(config, tile, deep, WORD * TILE)
            amx("ldtilecfg", T.address_of(config[0]))

    @inlined
    def release(rows):
        if rows > 0:
            amx("tilerelease")

    return configure, release
