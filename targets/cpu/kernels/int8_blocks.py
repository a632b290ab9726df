"""Blocks of rows of the 8-bit GEMM: sums by vectors or by tiles, then what becomes of them."""

from dataclasses import dataclass

from tvm.script import tirx as T

from graphopt.targets.cpu.kernels.amx import TILE, Amx
from graphopt.targets.cpu.kernels.byte_products import byte_products
from graphopt.targets.cpu.kernels.panels import Emitted, GemmParams
from graphopt.targets.cpu.kernels.tile_products import by_tiles
from graphopt.targets.kernels.script import inlined


@dataclass(frozen=True)
class Int8Blocks:
    """What blocks have in common.

    They take the tensors (words, own, first, weights, start, (scale, bias, given, y)): rows of
    codes as words; their own steps and zero points, if they have such; their first row in y.

    Attributes:
        words: of a row of codes.
        packed: words along K of the weights; what is more lies before those of the last tile.
        in_place: codes of all rows are there, and not only those from `first` on.
        by_row: each row has a step and a zero point of its own.
        store: as `panels.storing` makes it.
    """

    words: int
    packed: int
    params: GemmParams
    in_place: bool
    by_row: bool
    store: Emitted

    def _place(self, first, row):
        """Where the codes of a row are."""
        return first + row if self.in_place else row

    def _finishing(self) -> Emitted:
        """For use in a kernel: `finish(results, own, first, row, column, acc, at, start)`.

        Stores a vector: acc[at:at + lanes] are the sums of `row` from `column` on, less `start`
        unless that is None.
        """

        def whole(acc, start, own, row, column):
            if start is None:
                return acc
            return acc + (start[column] * own[1][row] if self.by_row else start[column])

        def scaled(factor, own, row):
            return factor * own[0][row] if self.by_row else factor

        lanes = self.params.lanes

        @inlined
        def finish(results, own, first, row, column, acc, at, start=None):
            factor, bias, given, y = T.meta_var(results)
            out = T.alloc_buffer((lanes,), "float32", scope="local")
            for lane in T.vectorized(lanes):
                out[lane] = (
                    T.Cast("float32", whole(acc[at + lane], start, own, row, column + lane))
                    * scaled(factor[column + lane], own, row)
                    + bias[column + lane]
                )
            self.store(y, first + row, column, out, 0, given)

        return finish

    def of_vectors(self) -> Emitted:
        """For use in a kernel: `block(tensors, row, panel, height, _)` computes rows of a panel."""
        width, vectors, lanes = self.params.width, self.params.vectors, self.params.lanes
        finish, by = self._finishing(), byte_products(lanes)
        beyond = self.words % TILE if self.packed > self.words else 0

        def begin(start, own, row):
            return start * T.Broadcast(own[1][row], lanes) if self.by_row else start

        @inlined
        def step(words, w, acc, at, panel, height, kk, packed):
            for r in T.unroll(height):
                for v in T.unroll(vectors):
                    acc[T.ramp(r * width + v * lanes, 1, lanes)] = by.dot(
                        acc[T.ramp(r * width + v * lanes, 1, lanes)],
                        T.Broadcast(words[at + r, kk], lanes),
                        by.read(w[panel, packed, T.ramp(v * lanes, 1, lanes)]),
                    )

        @inlined
        def block(tensors, row, panel, height, _):
            words, own, first, w, start, results = T.meta_var(tensors)
            acc = T.alloc_buffer((height * width,), "int32", scope="local")
            at = T.meta_var(self._place(first, row))
            for r in T.unroll(height):
                for v in T.unroll(vectors):
                    acc[T.ramp(r * width + v * lanes, 1, lanes)] = begin(
                        start[T.ramp(panel * width + v * lanes, 1, lanes)], own, row + r
                    )
            for kk in range(self.words - beyond):
                step(words, w, acc, at, panel, height, kk, kk)
            for kk in range(beyond):
                place = T.meta_var(self.words - beyond + kk)
                step(words, w, acc, at, panel, height, place, self.packed - beyond + kk)
            for r in T.unroll(height):
                for v in T.unroll(vectors):
                    column = T.meta_var(panel * width + v * lanes)
                    finish(results, own, first, row + r, column, acc, r * width + v * lanes)

        return block

    def of_tiles(self, amx: Amx, n: int) -> Emitted:
        """For use in a kernel: `visit`, as `by_tiles` makes it, for `n` columns."""
        width, vectors, store = self.params.width, self.params.vectors, self._finishing()

        def operands(tensors, row):
            return tensors[0], self._place(tensors[2], row), tensors[3]

        @inlined
        def finish(tensors, first, panel, sums, at, row):
            own, begin, start, results = T.meta_var((*tensors[1:3], *tensors[4:]))
            for v in T.unroll(vectors):
                place = T.meta_var(at + row * width + v * TILE)
                column = T.meta_var(panel * width + v * TILE)
                store(results, own, begin, first + row, column, sums, place, start)

        return by_tiles(amx, "tdpbusd", (self.words, n), self.params, operands, finish, "int32")
