"""Products of matrices that are not rows of data times constant weights: a tile a block of threads.

The tiles are those of dense layers; `device/sources.cuh` says where their operands come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.targets.cuda.kernels.blocks import covering, launched
from graphopt.targets.cuda.kernels.gemm import AS_LOOP, LEAST_BLOCKS, Math, Tile, place
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.relax.primfunc import int64

Place = Callable[[Any], Any]
_SMALL = Tile(16, 32, 32, 16, 32, 3, 2)
_LARGE = Tile(64, 64, 16, 32, 32, 3)
_FEW = 16  # rows or columns that leave most of a large tile empty
_BLOCKS = 100  # see `gemm_defaults`


def math_of_floats(math: Math) -> Math:
    """How operands are multiplied that are not packed, where dense layers multiply as `math`."""
    return {"Bf16": "Tf32", "Fp16": "Tf32", "Int8": "Fp32"}.get(math, math)  # type: ignore[return-value]


@dataclass(frozen=True)
class _Product:
    """`count` products of m x n elements.

    Attributes:
        call: what leaves the elements of a thread in `acc`, of (which, row, column, acc, shared).
        store: does what is to be done with an element, of (which, i, j, value).
        vector: neighbouring elements of a row that are stored at once.
        computed: the left operand is computed on the way.
    """

    math: Math
    count: Any
    m: Any
    n: Any
    call: Callable[..., Any]
    store: Callable[..., None]
    vector: int
    computed: bool = False

    def launch(self, tile: Tile) -> None:
        """The statements of a launch."""
        across, down = covering(self.n, tile.columns), covering(self.m, tile.rows)
        blocks = self.count * down * across
        held = tile.share_of_left if self.computed else 0
        with (
            # TVM launches a block where there is nothing to compute.
            launched(tirx.max(blocks, int64(1)), tile.threads) as (block, thread),
            T.attr(thread, LEAST_BLOCKS, tile.blocks(self.math, held)),
            T.If(block < blocks),
            T.Then(),
        ):
            words = tile.shared_words(self.math)
            shared = T.alloc_buffer([words], "float32", scope="shared.dyn")
            each = tile.warp_rows * tile.warp_columns // 32
            acc = T.alloc_buffer([each], "float32", scope="local")
            along, upright, number = (x.astype("int32") for x in (across, down, block))
            which = T.bind(tirx.truncdiv(number, along * upright).astype("int64"))
            row = T.bind(tirx.truncmod(tirx.truncdiv(number, along), upright) * tile.rows)
            column = T.bind(tirx.truncmod(number, along) * tile.columns)
            T.evaluate(self.call(tile, which, row, column, acc, shared))
            with T.If(thread < tile.threads // tile.slices), T.Then():
                self._store(tile, which, row, column, acc, thread)

    def _store(self, tile: Tile, which: Any, row: Any, column: Any, acc: Any, thread: Any) -> None:
        wide, lanes = (4, 8) if self.math == "Fp32" else (2, 4)
        down, along = tile.warp_rows * lanes // 32, tile.warp_columns // (wide * lanes)
        warps, warp, lane = tile.columns // tile.warp_columns, thread // 32, thread % 32
        first = T.bind(row.astype("int64") + warp // warps * tile.warp_rows + lane // lanes)
        own = T.bind(
            column.astype("int64") + warp % warps * tile.warp_columns + lane % lanes * wide
        )
        vector = gcd(wide, self.vector)
        with (
            T.unroll(int64(0), int64(down), annotations=AS_LOOP) as r,
            T.unroll(int64(0), int64(along), annotations=AS_LOOP) as c,
            T.unroll(int64(0), int64(wide // vector), annotations=AS_LOOP) as part,
        ):
            at = place(self.math, r, c, along) + part * vector
            i, j = first + r * (32 // lanes), own + c * wide * lanes + part * vector
            with T.If(tirx.all(i < self.m, j < self.n)), T.Then(), T.vectorized(vector) as v:
                self.store(which, i, j + v, acc[at + v])


def batched(
    math: Math, a: Any, b: Any, out: Any, places: Sequence[Place], aligned: Sequence[bool]
) -> None:
    """The statements of the kernel: out[count, m, n] = a[., m, k] @ b[., k, n], float32.

    Args:
        places: which of a, and which of b, the product of a number takes.
        aligned: for each of them, False if it may begin anywhere.
    """
    m, k, n = int64(a.shape[1]), int64(a.shape[2]), int64(b.shape[2])
    # Tensor cores cut off the bits of a float32 that tf32 does not have.
    kind = "Tf32OfBoth" if math == "Tf32" else math
    vectors = ", ".join(str(_vector(x)) if fits else "1" for x, fits in zip((k, n), aligned))

    def call(tile: Tile, which: Any, row: Any, column: Any, acc: Any, shared: Any) -> Any:
        operands = [T.address_of(x[at(which), 0, 0]) for x, at in zip((a, b), places)]
        sizes = [*(size.astype("int32") for size in (m, n, k)), row, column]
        name = f"graphopt::computed_tile<{tile.name}, graphopt::{kind}, {vectors}>"
        return T.call_extern("void", name, acc.data, shared.data, *operands, *sizes)

    def store(which: Any, i: Any, j: Any, value: Any) -> None:
        T.buffer_store(out, value, [which, i, j])

    small = any(isinstance(size, tirx.IntImm) and int(size) <= _FEW for size in (m, n))
    product = _Product(math, int64(out.shape[0]), m, n, call, store, _vector(n))
    product.launch(_SMALL if small else _LARGE)


def _vector(size: Any) -> int:
    """Floats of a row of `size` that are copied at a time."""
    return gcd(4, int(size)) if isinstance(size, tirx.IntImm) else 1


def compressed_interaction(
    math: Math, x: Any, y: Any, weights: Any, pairs: Any, bias: Any, out: Any, activation: str
) -> None:
    """The statements of the kernel: what `graphopt::CompressedInteraction` says, float32.

    The products of pairs of features are formed as they are multiplied with the weights.

    Args:
        x: [n, h, d], and y [n, m, d].
        weights: those of the pairs, as `pack_weights` has them.
        pairs: int32 [number], i * m + j of each.
        bias: [maps], which is the middle axis of `out`.
    """
    left, dim, right = int(x.shape[1]), int(x.shape[2]), int(y.shape[1])
    maps, number, rows = int(out.shape[1]), int(pairs.shape[0]), int64(x.shape[0]) * dim
    sizes = f"{left}, {right}, {dim}, {number}, {maps}"
    activated = Activation(activation)  # type: ignore[arg-type]

    def call(tile: Tile, which: Any, row: Any, column: Any, acc: Any, shared: Any) -> Any:
        name = f"graphopt::products_tile<{tile.name}, graphopt::{math}, {sizes}>"
        places = [rows.astype("int32"), row, column]
        data = [buffer.data for buffer in (acc, shared, x, y, weights, pairs)]
        return T.call_extern("void", name, *data, *places)

    def store(which: Any, i: Any, j: Any, value: Any) -> None:
        T.buffer_store(out, activated(value + bias[j]), [i // dim, j, i % dim])

    product = _Product(math, int64(1), rows, int64(maps), call, store, 1, computed=True)
    enough = _BLOCKS // -(-maps // _LARGE.columns) * _LARGE.rows
    with T.If(rows <= enough):
        with T.Then():
            product.launch(_SMALL)
        with T.Else():
            product.launch(_LARGE)
