"""Which variants of the GEMM a layer takes where nothing was measured for it.

Measured on an H200, layers of 256 x 64 to 3456 x 1024. Up to 48 rows reading the weights is what
takes the time. From there on the best tile is the largest one that still makes about 100 blocks of
threads, most of what such a GPU runs at a time. Those for float16 and for 8 bits were not measured:
they are those for bfloat16, with as many bytes of k. All fit the shared memory of the smallest GPU
that runs the code: 99 KiB, or 64 KiB for those without tensor cores.
"""

from __future__ import annotations

from itertools import pairwise

from graphopt.targets.cuda.kernels.gemm import MAX_DOTS, FewRows, Math, Range, RowDots, Tile

BLOCKS = 100
_FEW = 48
_TF32_TILES = (
    Tile(16, 16, 128, 16, 16, 4, 8),
    Tile(64, 64, 64, 32, 32, 2, 2),
    Tile(128, 128, 32, 64, 32, 2),
)
_HALF_TILES = (
    Tile(16, 32, 64, 16, 32, 3, 4),
    Tile(64, 64, 32, 32, 32, 3, 2),
    Tile(128, 128, 16, 64, 32, 3),
)
_BYTE_TILES = (
    Tile(16, 32, 32, 16, 32, 3, 4),
    Tile(64, 64, 16, 32, 32, 3, 2),
    Tile(128, 128, 16, 64, 32, 3),
)
_TILES: dict[Math, tuple[Tile, ...]] = {
    "Fp32": (
        Tile(16, 32, 64, 16, 32, 3, 4),
        Tile(32, 32, 64, 32, 32, 3, 4),
        Tile(64, 64, 32, 32, 32, 3),
    ),
    "Tf32x3": _TF32_TILES,
    "Tf32": _TF32_TILES,
    "Bf16": _HALF_TILES,
    "Fp16": _HALF_TILES,
    "Int8": _BYTE_TILES,
    "Codes": _BYTE_TILES,
}


def shared_limit(math: Math) -> int:
    """Bytes of shared memory that a block has on every GPU that runs the code."""
    return (64 if math == "Fp32" else 99) * 1024


def default_ranges(n: int, math: Math) -> tuple[Range, ...]:
    """What to launch for how many rows, where there are `n` columns."""
    if n <= MAX_DOTS:
        return ((None, RowDots(8)),)
    ranges: list[Range] = [(2, FewRows(1, 16, 512)), (_FEW, FewRows(8, 16, 256))]
    tiles = [tile for tile in _TILES[math] if tile.columns < 2 * n] or [_TILES[math][0]]
    for tile, larger in pairwise(tiles):
        limit = BLOCKS // -(-n // larger.columns) * larger.rows
        if limit > _FEW:
            ranges.append((limit, tile))
    return (*ranges, (None, tiles[-1]))
