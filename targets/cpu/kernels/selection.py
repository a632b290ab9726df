"""Selection: stable sorting, positions of non-zero elements, distinct rows.

Results whose length depends on the data come in two kernels: one counts, one fills a buffer of that
length.
"""

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.ordering import is_nonzero, precedes
from graphopt.targets.kernels import script
from graphopt.targets.kernels.storage import element_bytes, extent

_INDEX_ALIGN = element_bytes("int64")


@cache
def argsort(length: int | None, width: int | None, dtype: str) -> PrimFunc:
    """Kernel (data[length, width]) -> (order[length], work[length]), int64.

    `order` are the positions of rows, sorted by their first element, where that is equal by the
    next one, and so on; equal rows keep their order.  A bottom-up merge sort by each column, from
    the last one on.  An extent given as None is symbolic; `work` is scratch.
    """
    size, columns = extent("length", length), extent("width", width)

    @script.prim_func(private=True, s_tir=True)
    def argsort(data: T.handle, order: T.handle, work: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        x = T.match_buffer(data, (size, columns), dtype, align=element_bytes(dtype))
        out = T.match_buffer(order, (size,), "int64", align=_INDEX_ALIGN)
        spare = T.match_buffer(work, (size,), "int64", align=_INDEX_ALIGN)
        # run length, start of the pair of runs, next of the left run, next of the right run
        at = T.alloc_buffer((4,), "int64", scope="local")
        for j in range(size):
            out[j] = T.Cast("int64", j)
        for k in range(columns):
            at[0] = T.int64(1)
            while at[0] < size:
                at[1] = T.int64(0)
                while at[1] < size:
                    at[2] = at[1]
                    at[3] = at[1] + at[0]
                    for j in range(at[1], T.min(at[1] + at[0] * 2, size)):
                        # Both sides of `and` are evaluated: a finished run is read at the end.
                        left = x[out[T.min(at[2], size - 1)], columns - 1 - k]
                        right = x[out[T.min(at[3], size - 1)], columns - 1 - k]
                        right_is_next = at[3] < T.min(at[1] + at[0] * 2, size) and (
                            at[2] >= T.min(at[1] + at[0], size)
                            or precedes(right, left, dtype, False)
                        )
                        if right_is_next:
                            spare[j] = out[at[3]]
                            at[3] = at[3] + T.int64(1)
                        else:
                            spare[j] = out[at[2]]
                            at[2] = at[2] + T.int64(1)
                    at[1] = at[1] + at[0] * 2
                for j in range(size):
                    out[j] = spare[j]
                at[0] = at[0] * 2

    return argsort


@cache
def nonzero_count(dtype: str) -> PrimFunc:
    """Kernel (data[n]) -> count int64[1] of the elements that are not zero."""

    @script.prim_func(private=True, s_tir=True)
    def nonzero_count(data: T.handle, count: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        n = T.int64()
        x = T.match_buffer(data, (n,), dtype, align=element_bytes(dtype))
        total = T.match_buffer(count, (1,), "int64", align=_INDEX_ALIGN)
        with T.sblock("nonzero_count"):  # Relax demands one of a kernel with one input
            total[0] = T.int64(0)
            for j in range(n):
                if is_nonzero(x[j], dtype):
                    total[0] = total[0] + T.int64(1)

    return nonzero_count


@cache
def nonzero_fill(dtype: str) -> PrimFunc:
    """Kernel (data[n]) -> positions int64[count], ascending; `nonzero_count` gives `count`."""

    @script.prim_func(private=True, s_tir=True)
    def nonzero_fill(data: T.handle, positions: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        n, count = T.int64(), T.int64()
        x = T.match_buffer(data, (n,), dtype, align=element_bytes(dtype))
        out = T.match_buffer(positions, (count,), "int64", align=_INDEX_ALIGN)
        found = T.alloc_buffer((1,), "int64", scope="local")
        found[0] = T.int64(0)
        for j in range(n):
            if is_nonzero(x[j], dtype):
                out[found[0]] = j
                found[0] = found[0] + T.int64(1)

    return nonzero_fill


@cache
def starts(dtype: str) -> PrimFunc:
    """Kernel (data[n, width], order[n]) -> bool[n]: where other rows begin in the order.

    `argsort` gives the order; all NaN count as one element.
    """

    @script.prim_func(private=True, s_tir=True)
    def starts(data: T.handle, order: T.handle, marks: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        n, width = T.int64(), T.int64()
        x = T.match_buffer(data, (n, width), dtype, align=element_bytes(dtype))
        by = T.match_buffer(order, (n,), "int64", align=_INDEX_ALIGN)
        begins = T.match_buffer(marks, (n,), "bool", align=1)
        for j in range(n):
            begins[j] = j == 0
            for k in range(width):
                before = x[by[T.max(j - 1, 0)], k]
                here = x[by[j], k]
                # Where an earlier element of the row is larger, a later one may be smaller.
                if precedes(before, here, dtype, False) or precedes(here, before, dtype, False):
                    begins[j] = True

    return starts


@cache
def distinct_fill(by_value: bool) -> PrimFunc:
    """Kernel (starts[n], order[n]) -> (first[count], inverse[n], counts[count], rank[count]).

    Of `count` rows that differ, int64: `first` holds the position of each one's first occurrence,
    `inverse` which one stands at each position, `counts` how often each occurs.  They are in order
    of value, or, unless `by_value`, of first occurrence; `rank` is scratch.
    """

    @script.prim_func(private=True, s_tir=True)
    def distinct_fill(
        starts: T.handle,
        order: T.handle,
        first: T.handle,
        inverse: T.handle,
        counts: T.handle,
        rank: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        n, count = T.int64(), T.int64()
        begins = T.match_buffer(starts, (n,), "bool", align=1)
        by = T.match_buffer(order, (n,), "int64", align=_INDEX_ALIGN)
        start = T.match_buffer(first, (count,), "int64", align=_INDEX_ALIGN)
        which = T.match_buffer(inverse, (n,), "int64", align=_INDEX_ALIGN)
        often = T.match_buffer(counts, (count,), "int64", align=_INDEX_ALIGN)
        place = T.match_buffer(rank, (count,), "int64", align=_INDEX_ALIGN)
        group = T.alloc_buffer((1,), "int64", scope="local")
        group[0] = T.int64(-1)
        for j in range(n):
            if begins[j]:
                group[0] = group[0] + T.int64(1)
                start[group[0]] = by[j]
            which[by[j]] = group[0]
        group[0] = T.int64(0)
        for j in range(n):
            if start[which[j]] == j:
                if by_value:
                    place[which[j]] = which[j]
                else:
                    place[which[j]] = group[0]
                group[0] = group[0] + T.int64(1)
        for j in range(count):
            often[j] = T.int64(0)
        for j in range(n):
            which[j] = place[which[j]]
            often[which[j]] = often[which[j]] + T.int64(1)
        for j in range(n):
            if not by_value:
                start[which[n - 1 - j]] = n - 1 - j

    return distinct_fill
