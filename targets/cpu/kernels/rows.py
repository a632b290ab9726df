"""Moves of whole rows between 2-D buffers, inlined into the lookup kernels."""

from dataclasses import dataclass

from tvm.script import tirx as T

from graphopt.targets.kernels.script import inlined

PREFETCH_DISTANCE = 8  # lookups; 4 to 32 measure alike, none is 12-20 % slower on a 256 MB table
PREFETCH_BYTES = 1 << 20  # smaller tables stay in the second-level cache
CACHE_LINE = 64


@dataclass(frozen=True)
class LookupParams:
    """How rows of a table are read.

    Attributes:
        ahead: a row is asked for so many lookups before it is read; 0 for never.
    """

    ahead: int


def lookup_params(table_bytes: int) -> LookupParams:
    """Parameters for a table of that size."""
    return LookupParams(PREFETCH_DISTANCE if table_bytes >= PREFETCH_BYTES else 0)


@inlined
def copy_row(dst, at, src, row, width, lanes):
    """dst[at, :] = src[row, :] in moves of `lanes` elements; LLVM vectorizes a symbolic width."""
    if isinstance(width, int):
        for chunk in range(width // lanes):
            for lane in T.vectorized(lanes):
                dst[at, chunk * lanes + lane] = src[row, chunk * lanes + lane]
        if width % lanes > 0:
            for lane in T.vectorized(width % lanes):
                dst[at, width - width % lanes + lane] = src[row, width - width % lanes + lane]
    else:
        for j in range(width):
            dst[at, j] = src[row, j]


@inlined
def zero_row(dst, at, width):
    for j in range(width):
        dst[at, j] = T.Cast(dst.dtype, 0)


@inlined
def prefetch_row(src, ids, i, start, rows, width, element_bytes, distance=PREFETCH_DISTANCE):
    """Ask for the row that lookup `i + distance` will read; any id is harmless here.

    The table is the `rows` rows of `src` from `start` on.
    """
    ahead = T.Cast("int64", ids[T.min(i + distance, ids.shape[0] - 1)])
    row = start + T.max(T.min(ahead, rows - 1), T.int64(0))
    for line in T.unroll((width * element_bytes + CACHE_LINE - 1) // CACHE_LINE):
        at = row * width + line * (CACHE_LINE // element_bytes)
        T.evaluate(
            T.call_llvm_intrin(
                "void",
                "llvm.prefetch",
                src.access_ptr("r", offset=at),
                T.int32(0),  # for reading
                T.int32(3),  # into every level
                T.int32(1),  # of the data cache
            )
        )
