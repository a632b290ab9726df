"""Ids of several tables as row numbers of the tables stacked in one."""

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.kernels import script
from graphopt.targets.kernels.bounds import OutOfBounds, check_policy, is_valid, row_of
from graphopt.targets.kernels.storage import element_bytes

OUT_OF_RANGE = "TableRows: an index lies outside its table"


@cache
def table_rows(
    total: int,
    fields: int,
    index_dtype: str,
    oob: OutOfBounds = "error",
    message: str = OUT_OF_RANGE,
) -> PrimFunc:
    """Kernel (ids[n, fields], extents[2, fields]) -> out[n, fields], row numbers in [0, total].

    `extents` holds the first row of every table and its number of rows, at least 1. Ids mean what
    they mean to `gather_rows`, each in the table of its column; under "zero" an id outside becomes
    `total`, which lies outside of the stack too. `n` is symbolic.
    """
    check_policy(oob, index_dtype)
    checks, zeroes = oob == "error", oob == "zero"

    @script.prim_func(private=True, s_tir=True)
    def table_rows(ids: T.handle, extents: T.handle, out: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        n = T.int64()
        index = T.match_buffer(ids, (n, fields), index_dtype, align=element_bytes(index_dtype))
        extent = T.match_buffer(extents, (2, fields), "int64", align=8)
        dst = T.match_buffer(out, (n, fields), "int64", align=8)
        for i, k in T.grid(n, fields):
            at = T.Cast("int64", index[i, k])
            if checks:
                assert is_valid(at, extent[1, k]), message
            if zeroes:
                dst[i, k] = T.Select(
                    is_valid(at, extent[1, k]),
                    extent[0, k] + row_of(at, extent[1, k], oob),
                    T.int64(total),
                )
            else:
                dst[i, k] = extent[0, k] + row_of(at, extent[1, k], oob)

    return table_rows
