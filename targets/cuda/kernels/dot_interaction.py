"""Dot products of pairs of the feature vectors of a sample: a block a sample, by tiles of pairs.

The vectors lie in shared memory. A few neighbouring threads share a tile of `TILE` by `TILE`
products, each taking its part of the columns, so that one read of a vector serves `TILE` products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.targets.cuda.kernels import warps
from graphopt.targets.cuda.kernels.blocks import launched
from graphopt.targets.relax.primfunc import int64

TILE = 4
LANES = 4  # elements read at once
SHARED_BYTES = 46 << 10


@dataclass(frozen=True)
class Shape:
    """The static sizes: `count` vectors of `dim` elements."""

    count: int
    dim: int

    @property
    def side(self) -> int:
        """Tiles along one axis of the square of products."""
        return -(-self.count // TILE)

    @property
    def tiles(self) -> int:
        """Tiles on and below the diagonal."""
        return self.side * (self.side + 1) // 2

    @property
    def columns(self) -> int:
        """Elements of a vector in shared memory: whole pieces."""
        return -(-self.dim // LANES) * LANES

    @property
    def stride(self) -> int:
        """From one vector to the next: a piece more, so that tiles lie in different banks."""
        return self.columns + LANES

    @property
    def split(self) -> int:
        """Threads that share a tile."""
        return 4 if self.dim >= 8 * LANES else 2 if self.dim >= 2 * LANES else 1

    @property
    def threads(self) -> int:
        return min(256, -(-self.tiles * self.split // warps.WARP) * warps.WARP)

    @property
    def fits(self) -> bool:
        """True if a sample fits in shared memory."""
        return 4 * (self.side * TILE * self.stride + self.count**2) <= SHARED_BYTES


def dot_interaction(shape: Shape, x: Any, pairs: Any, beside: Any, out: Any) -> None:
    """The statements of the kernel: out[n, e + p] = beside[n, :e], x[n, i] . x[n, j] for each pair.

    Args:
        x: float32 [n * count, dim].
        pairs: int32 [p], i * count + j.
        beside: float32 [n, e], or None.
    """
    head = 0 if beside is None else int(beside.shape[1])
    total, threads = int(pairs.shape[0]), shape.threads
    samples = int64(out.shape[0])
    # TVM launches a block where there are no samples.
    with launched(tirx.max(samples, int64(1)), threads) as (sample, thread):
        vectors = T.alloc_buffer([shape.side * TILE * shape.stride], "float32", scope="shared")
        dots = T.alloc_buffer([shape.count**2], "float32", scope="shared")
        with T.If(sample < samples), T.Then():
            _load(shape, x, vectors, sample, thread)
            T.evaluate(T.tvm_storage_sync("shared"))
            groups = threads // shape.split
            for turn in range(-(-shape.tiles // groups)):
                tile = T.bind(thread // shape.split + turn * groups)
                with T.If(tile < shape.tiles), T.Then():
                    _multiply(shape, vectors, dots, tile, thread % shape.split)
            T.evaluate(T.tvm_storage_sync("shared"))
            for first in range(0, head, threads):
                with T.If(first + thread < head), T.Then():
                    T.buffer_store(out, beside[sample, first + thread], [sample, first + thread])
            for first in range(0, total, threads):
                with T.If(first + thread < total), T.Then():
                    product = dots[pairs[first + thread].astype("int64")]
                    T.buffer_store(out, product, [sample, head + first + thread])


def _load(shape: Shape, x: Any, vectors: Any, sample: Any, thread: Any) -> None:
    """Fill shared memory with the vectors of a sample; what is beyond them is 0."""
    lanes = LANES if shape.dim % LANES == 0 else 1
    pieces = shape.columns // lanes
    for first in range(0, shape.side * TILE * pieces, shape.threads):
        at = first + thread
        row, column = at // pieces, at % pieces * lanes
        inside = row < shape.count
        if shape.columns != shape.dim:
            inside = T.And(inside, column < shape.dim)
        with T.If(at < shape.side * TILE * pieces), T.Then(), T.If(inside):
            with T.Then(), T.vectorized(lanes) as j:
                value = x[sample * shape.count + row, column + j]
                T.buffer_store(vectors, value, [row * shape.stride + column + j])
            with T.Else(), T.vectorized(lanes) as j:
                T.buffer_store(vectors, T.float32(0), [row * shape.stride + column + j])


def _multiply(shape: Shape, vectors: Any, dots: Any, tile: Any, part: Any) -> None:
    """dots[i, j], dots[j, i] = the products of a tile."""
    root = T.sqrt((tile * 8 + 1).astype("float32"))  # exact for squares
    row = T.bind(((root - T.float32(1)) * T.float32(0.5)).astype("int64"))
    column = T.bind(tile - row * (row + 1) // 2)
    sums = T.alloc_buffer([TILE * TILE], "float32", scope="local")
    a = T.alloc_buffer([TILE, LANES], "float32", scope="local")
    b = T.alloc_buffer([TILE, LANES], "float32", scope="local")
    for k in range(TILE * TILE):
        T.buffer_store(sums, T.float32(0), [k])
    pieces = shape.columns // LANES
    with T.serial(int64(0), int64(-(-pieces // shape.split))) as turn:
        piece = T.bind(turn * shape.split + part)

        def add() -> None:
            for i in range(TILE):
                for held, which in ((a, row), (b, column)):
                    first = (which * TILE + i) * shape.stride + piece * LANES
                    with T.vectorized(LANES) as j:
                        T.buffer_store(held, vectors[first + j], [i, j])
            for i in range(TILE):
                for j in range(TILE):
                    total = sums[i * TILE + j]
                    for k in range(LANES):
                        total = total + a[i, k] * b[j, k]
                    T.buffer_store(sums, total, [i * TILE + j])

        if pieces % shape.split:
            with T.If(piece < pieces), T.Then():
                add()
        else:
            add()
    mask = T.tvm_warp_activemask()
    for i in range(TILE):
        for j in range(TILE):
            at = i * TILE + j
            warps.added(sums, at, shape.split, mask)
            left, right = row * TILE + i, column * TILE + j
            wanted = T.And(part == 0, T.And(left < shape.count, right <= left))
            with T.If(wanted), T.Then():
                T.buffer_store(dots, sums[at], [left * shape.count + right])
                T.buffer_store(dots, sums[at], [right * shape.count + left])
