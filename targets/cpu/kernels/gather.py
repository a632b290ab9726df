"""Row lookup: ONNX Gather along one axis, and the table lookup of an embedding."""

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.rows import (
    LookupParams,
    copy_row,
    lookup_params,
    prefetch_row,
    zero_row,
)
from graphopt.targets.kernels import script
from graphopt.targets.kernels.bounds import (
    OutOfBounds,
    check_policy,
    is_allowed,
    is_valid,
    row_of,
)
from graphopt.targets.kernels.storage import bits_dtype, element_bytes, extent, vector_lanes

OUT_OF_RANGE = "Gather: an index lies outside the table"


@cache
def gather_rows(
    rows: int,
    width: int,
    dtype: str,
    index_dtype: str,
    oob: OutOfBounds = "error",
    message: str = OUT_OF_RANGE,
    params: LookupParams | None = None,
) -> PrimFunc:
    """Kernel (table[rows, width], ids[n]) -> out[n, width] with out[i] = table[ids[i]].

    `n` is symbolic.  Indices in [-rows, -1] count from the end, as in ONNX Gather; what any other
    index outside [0, rows) does is `oob`'s to say, and none reads outside the table.  Under "error"
    the rows before the offending one are written.
    """
    check_policy(oob, index_dtype)
    bits, align, lanes = bits_dtype(dtype), element_bytes(dtype), vector_lanes(dtype)
    index_align = element_bytes(index_dtype)
    zeroes = oob == "zero"
    ahead = (params or lookup_params(rows * width * align)).ahead

    @script.prim_func(private=True, s_tir=True)
    def gather_rows(table: T.handle, ids: T.handle, out: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        n = T.int64()
        typed_table = T.match_buffer(table, (rows, width), dtype, align=align)
        index = T.match_buffer(ids, (n,), index_dtype, align=index_align)
        typed_out = T.match_buffer(out, (n, width), dtype, align=align)
        src = T.decl_buffer((rows, width), bits, data=typed_table.data, align=align)
        dst = T.decl_buffer((n, width), bits, data=typed_out.data, align=align)
        for i in range(n):
            at = T.Cast("int64", index[i])
            assert is_allowed(at, rows, oob), message
            if ahead > 0:
                prefetch_row(src, index, i, 0, rows, width, align, ahead)
            if zeroes:
                if is_valid(at, rows):
                    copy_row(dst, i, src, row_of(at, rows, oob), width, lanes)
                else:
                    zero_row(dst, i, width)
            else:
                copy_row(dst, i, src, row_of(at, rows, oob), width, lanes)

    return gather_rows


@cache
def gather_axis(
    outer: int | None,
    axis_len: int | None,
    inner: int | None,
    dtype: str,
    index_dtype: str,
    oob: OutOfBounds = "error",
    message: str = OUT_OF_RANGE,
) -> PrimFunc:
    """Kernel (data[outer, axis_len, inner], ids[n]) -> out[outer, n, inner].

    ONNX Gather on any axis, its data and ids flattened by the caller.  An extent given as None is
    symbolic, `n` always is.  Indices mean what they mean to `gather_rows`; they are all checked
    before the first element is written, and with `outer` = 0 too.
    """
    check_policy(oob, index_dtype)
    bits, align, lanes = bits_dtype(dtype), element_bytes(dtype), vector_lanes(dtype)
    index_align = element_bytes(index_dtype)
    zeroes = oob == "zero"
    before, length = extent("outer", outer), extent("axis_len", axis_len)
    after = extent("inner", inner)

    @script.prim_func(private=True, s_tir=True)
    def gather_axis(data: T.handle, ids: T.handle, out: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        n = T.int64()
        typed_data = T.match_buffer(data, (before, length, after), dtype, align=align)
        index = T.match_buffer(ids, (n,), index_dtype, align=index_align)
        typed_out = T.match_buffer(out, (before, n, after), dtype, align=align)
        src = T.decl_buffer((before * length, after), bits, data=typed_data.data, align=align)
        dst = T.decl_buffer((before * n, after), bits, data=typed_out.data, align=align)
        for i in range(n):
            assert is_allowed(T.Cast("int64", index[i]), length, oob), message
        for block, i in T.grid(before, n):
            at = T.Cast("int64", index[i])
            row = block * length + row_of(at, length, oob)
            if zeroes:
                if is_valid(at, length):
                    copy_row(dst, block * n + i, src, row, after, lanes)
                else:
                    zero_row(dst, block * n + i, after)
            else:
                copy_row(dst, block * n + i, src, row, after, lanes)

    return gather_axis
