"""Places of the greatest or least elements of rows, a vector at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.folding import reducing
from graphopt.targets.cpu.kernels.panels import Emitted
from graphopt.targets.cpu.kernels.row_vectors import SIDE, RowVectors, greatest
from graphopt.targets.kernels import script
from graphopt.targets.kernels.elementary import maximum, same_or_nan
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes, extent


@cache
def extreme_place(dim: int | None, lanes: int, *, least: bool, last: bool) -> PrimFunc:
    """Kernel (x[rows, dim]) -> place[rows] int64, `rows` symbolic, and so is `dim` if None.

    Where in a row its greatest float32 is, or its `least`: the first of equal ones, or the `last`.
    NaN counts as the extreme, and -0 is equal to 0. A row without elements gives some number.

    Args:
        lanes: float32 elements in a vector register.
    """
    align, columns = element_bytes("float32"), extent("columns", dim)
    width = RowVectors.width_for(dim, lanes)
    by_vectors, one_by_one = (_of_row(RowVectors(columns, w), least, last) for w in (width, 1))

    @script.prim_func(private=True, s_tir=True)
    def extreme_place(x_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, columns), "float32", align=align)
        out = T.match_buffer(out_, (rows,), "int64", align=element_bytes("int64"))
        with T.sblock("extreme_place"):  # Relax demands one of a kernel with one input
            for row in range(rows):
                if columns >= width:
                    by_vectors(out, x, row)
                else:
                    one_by_one(out, x, row)

    return extreme_place


def _of_row(vectors: RowVectors, least: bool, last: bool) -> Emitted:
    """For use in a kernel: `find(out, x, row)`.

    First the extreme, then where it is: of each lane in which vector, a number of 32 bits.
    """
    width = vectors.width
    prefer = T.max if last else T.min
    missing, nowhere = (-1, -1) if last else ((1 << 31) - 1, (1 << 63) - 1)

    def value(x: Any, row: Any, column: Any) -> Any:
        return -x[row, column] if least else x[row, column]

    best_of, join = greatest(vectors, maximum, value), reducing(width, prefer)

    @inlined
    def places_of(place, x, row, best):
        """Each lane's place."""
        found = T.alloc_buffer((width,), "int32")
        for lane in T.vectorized(width):
            found[lane] = T.int32(missing)
        for chunk in range(vectors.chunks):
            for lane in T.vectorized(width):
                here = T.meta_var(same_or_nan(value(x, row, chunk * width + lane), best))
                number = T.meta_var(T.Cast("int32", chunk))
                found[lane] = prefer(found[lane], T.Select(here > 0, number, T.int32(missing)))
        for lane in T.vectorized(width):
            column = T.meta_var(T.Cast("int64", found[lane]) * width + T.Cast("int64", lane))
            is_missing = T.meta_var(found[lane] == T.int32(missing))
            place[lane] = T.Select(is_missing, T.int64(nowhere), column)
        if vectors.ends:
            for lane in T.vectorized(width):
                here = T.meta_var(same_or_nan(value(x, row, vectors.last + lane), best))
                column = T.meta_var(T.int64(vectors.last) + T.Cast("int64", lane))
                place[lane] = prefer(place[lane], T.Select(here > 0, column, T.int64(nowhere)))

    @inlined
    def find(out, x, row):
        best = T.alloc_buffer((width * SIDE,), "float32")
        place = T.alloc_buffer((width,), "int64")
        best_of(best, x, row)
        places_of(place, x, row, best[0])
        join(place, 0)
        out[row] = place[0]

    return find
