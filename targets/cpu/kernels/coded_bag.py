"""Embedding bags over tables in few bits: codes with a scale for each row, or out of codebooks."""

from dataclasses import dataclass
from functools import cache

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.ops.product_lookup import ENTRIES
from graphopt.targets.kernels import script
from graphopt.targets.kernels.bounds import (
    OutOfBounds,
    check_policy,
    is_allowed,
    is_valid,
    row_of,
)
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes, extent

OUT_OF_RANGE = "embedding bag: an index lies outside the table"
BAD_OFFSETS = "embedding bag: offsets must not decrease and must lie in [0, number of ids]"
_LANES = 16  # elements accumulated at once


@dataclass(frozen=True)
class CodedPooling:
    """A table in few bits, and how the rows of a bag become one row.

    width: bytes of a row of codes: dim for 8 `bits`, half of it for 4, parts for codebooks.
    bits: of a code with a scale; 0 where codes are numbers in codebooks.
    key_dtype: of the scales, or of the codebooks.
    part: elements that an entry of a codebook has.
    mean: divide by the number of rows, those of zeros (`oob` "zero") included.
    padding_idx: this very id does not count; None for no padding.
    """

    rows: int
    width: int
    bits: int
    key_dtype: str
    index_dtype: str
    part: int = 1
    mean: bool = False
    oob: OutOfBounds = "error"
    message: str = OUT_OF_RANGE
    offsets_message: str = BAD_OFFSETS
    padding_idx: int | None = None

    def __post_init__(self) -> None:
        check_policy(self.oob, self.index_dtype)
        if self.bits not in (0, 4, 8):
            raise ValueError(f"codes have 4 or 8 bits, not {self.bits}")

    @property
    def dim(self) -> int:
        return self.width * {0: self.part, 4: 2, 8: 1}[self.bits]

    @property
    def dtype(self) -> str:
        return "int8" if self.bits == 8 else "uint8"

    @property
    def key_shape(self) -> tuple[int, ...]:
        """Of what codes are looked up in, or multiplied by."""
        return (self.rows,) if self.bits else (self.width * ENTRIES, self.part)

    def is_valid(self, index):
        """Boolean expression: `index` reads a row of the table and not a row of zeros."""
        return is_valid(index, self.rows) if self.oob == "zero" else T.bool(True)

    def counts(self, index):
        """Boolean expression: `index` is not padding."""
        return T.bool(True) if self.padding_idx is None else index != self.padding_idx

    def share(self, count):
        """What a sum of `count` rows is multiplied by."""
        return (
            T.float32(1) / T.Cast("float32", T.max(count, T.int64(1)))
            if self.mean
            else T.float32(1)
        )


@inlined
def _add_element(pooling, acc, src, row, column, scale):
    if pooling.bits == 8:
        acc[column] = acc[column] + T.Cast("float32", src[row, column]) * scale
    else:
        byte = T.meta_var(T.Cast("int32", src[row, column]))
        acc[column] = acc[column] + T.Cast("float32", (byte & 15) - 8) * scale
        high = T.meta_var(pooling.width + column)
        acc[high] = acc[high] + T.Cast("float32", (byte >> 4) - 8) * scale


@inlined
def _add_codes(pooling, acc, src, row, scale):
    width = T.meta_var(pooling.width)
    for chunk in range(width // _LANES):
        for lane in T.vectorized(_LANES):
            _add_element(pooling, acc, src, row, chunk * _LANES + lane, scale)
    if width % _LANES > 0:
        for lane in T.vectorized(width % _LANES):
            _add_element(pooling, acc, src, row, width - width % _LANES + lane, scale)


@inlined
def _add_parts(pooling, acc, src, row, books):
    for k in range(pooling.width):
        entry = T.meta_var(k * ENTRIES + T.Cast("int64", src[row, k]))
        for lane in T.vectorized(pooling.part):
            at = T.meta_var(k * pooling.part + lane)
            acc[at] = acc[at] + T.Cast("float32", books[entry, lane])


@inlined
def _pool_bag(pooling, src, keys, ids, dst, bag, first, last):
    """dst[bag, :] = the rows of ids[first:last] pooled."""
    acc = T.alloc_buffer((pooling.dim,), "float32", scope="local")
    for j in range(pooling.dim):
        acc[j] = T.float32(0)
    count: T.int64 = 0
    for i in range(last - first):
        at = T.Cast("int64", ids[first + i])
        assert is_allowed(at, pooling.rows, pooling.oob), pooling.message
        if pooling.counts(at):
            count = count + 1
            if pooling.is_valid(at):
                row = row_of(at, pooling.rows, pooling.oob)
                if pooling.bits == 0:
                    _add_parts(pooling, acc, src, row, keys)
                else:
                    _add_codes(pooling, acc, src, row, T.Cast("float32", keys[row]))
    for j in range(pooling.dim):
        dst[bag, j] = acc[j] * pooling.share(count)


@cache
def coded_bag(
    pooling: CodedPooling, offset_dtype: str, include_last_offset: bool = False
) -> PrimFunc:
    """Kernel (codes[rows, width], keys[...], ids[n], offsets[b]) -> float32 out[b, dim].

    Bags are those of `embedding_bag`, and so is what happens to bad offsets.
    """
    check_policy(pooling.oob, offset_dtype)
    rows, checks = pooling.rows, pooling.oob == "error"
    key_align, index_align = map(element_bytes, (pooling.key_dtype, pooling.index_dtype))
    n, b = tirx.Var("n", "int64"), tirx.Var("b", "int64")
    m = tirx.Var("b_plus_1", "int64") if include_last_offset else b
    bags = m - 1 if include_last_offset else b

    @script.prim_func(private=True, s_tir=True)
    def coded_bag(codes: T.handle, keys: T.handle, ids: T.handle, offsets: T.handle, out: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        src = T.match_buffer(codes, (rows, pooling.width), pooling.dtype, align=1)
        key = T.match_buffer(keys, pooling.key_shape, pooling.key_dtype, align=key_align)
        index = T.match_buffer(ids, (n,), pooling.index_dtype, align=index_align)
        offset = T.match_buffer(offsets, (m,), offset_dtype, align=element_bytes(offset_dtype))
        dst = T.match_buffer(out, (bags, pooling.dim), "float32", align=4)
        for bag in range(bags):
            first = T.Cast("int64", offset[bag])
            last = (
                T.Cast("int64", offset[bag + 1])
                if include_last_offset
                else T.if_then_else(bag + 1 < bags, T.Cast("int64", offset[bag + 1]), n)
            )
            if checks:
                assert (first >= 0) & (first <= last) & (last <= n), pooling.offsets_message
                _pool_bag(pooling, src, key, index, dst, bag, first, last)
            else:
                begin = T.max(T.min(first, n), T.int64(0))
                end = T.max(T.min(last, n), begin)
                _pool_bag(pooling, src, key, index, dst, bag, begin, end)

    return coded_bag


@cache
def coded_fixed_bag(pooling: CodedPooling, bag_len: int | None) -> PrimFunc:
    """Kernel (codes[rows, width], keys[...], ids[b, bag_len]) -> float32 out[b, dim].

    One bag a row of ids.  `b` is symbolic, and so is a `bag_len` given as None.
    """
    rows = pooling.rows
    key_align, index_align = map(element_bytes, (pooling.key_dtype, pooling.index_dtype))
    b, size = tirx.Var("b", "int64"), extent("bag_len", bag_len)

    @script.prim_func(private=True, s_tir=True)
    def coded_fixed_bag(codes: T.handle, keys: T.handle, ids: T.handle, out: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        src = T.match_buffer(codes, (rows, pooling.width), pooling.dtype, align=1)
        key = T.match_buffer(keys, pooling.key_shape, pooling.key_dtype, align=key_align)
        index = T.match_buffer(ids, (b, size), pooling.index_dtype, align=index_align)
        dst = T.match_buffer(out, (b, pooling.dim), "float32", align=4)
        flat = T.decl_buffer((b * size,), pooling.index_dtype, data=index.data, align=index_align)
        for bag in range(b):
            _pool_bag(pooling, src, key, flat, dst, bag, bag * size, (bag + 1) * size)

    return coded_fixed_bag
