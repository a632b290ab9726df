"""Row lookup in a table whose rows are made of parts out of codebooks."""

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.ops.product_lookup import ENTRIES
from graphopt.targets.cpu.kernels.rows import PREFETCH_BYTES, prefetch_row, zero_row
from graphopt.targets.kernels import script
from graphopt.targets.kernels.bounds import (
    OutOfBounds,
    check_policy,
    is_allowed,
    is_valid,
    row_of,
)
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes


@inlined
def _copy_parts(dst, at, codes, row, books, parts, width):
    for part in range(parts):
        entry = T.meta_var(part * ENTRIES + T.Cast("int64", codes[row, part]))
        for lane in T.vectorized(width):
            dst[at, part * width + lane] = T.Cast("float32", books[entry, lane])


@cache
def product_lookup(
    rows: int,
    parts: int,
    width: int,
    book_dtype: str,
    index_dtype: str,
    oob: OutOfBounds,
    message: str,
) -> PrimFunc:
    """Kernel (codes[rows, parts], books[parts * 256, width], ids[n]) -> float32 out[n, dim].

    `n` is symbolic. Indices mean what they mean to `gather_rows`.
    """
    check_policy(oob, index_dtype)
    dim, index_align = parts * width, element_bytes(index_dtype)
    book_align = element_bytes(book_dtype)
    zeroes, prefetches = oob == "zero", rows * parts >= PREFETCH_BYTES

    @script.prim_func(private=True, s_tir=True)
    def product_lookup(codes: T.handle, books: T.handle, ids: T.handle, out: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        n = T.int64()
        src = T.match_buffer(codes, (rows, parts), "uint8", align=1)
        book = T.match_buffer(books, (parts * ENTRIES, width), book_dtype, align=book_align)
        index = T.match_buffer(ids, (n,), index_dtype, align=index_align)
        dst = T.match_buffer(out, (n, dim), "float32", align=4)
        for i in range(n):
            at = T.Cast("int64", index[i])
            assert is_allowed(at, rows, oob), message
            if prefetches:
                prefetch_row(src, index, i, 0, rows, parts, 1)
            if zeroes:
                if is_valid(at, rows):
                    _copy_parts(dst, i, src, row_of(at, rows, oob), book, parts, width)
                else:
                    zero_row(dst, i, dim)
            else:
                _copy_parts(dst, i, src, row_of(at, rows, oob), book, parts, width)

    return product_lookup
