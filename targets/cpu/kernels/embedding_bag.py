"""Embedding bags: rows of a table looked up and pooled, one bag of ids a sample."""

from dataclasses import dataclass
from functools import cache

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.rows import lookup_params, prefetch_row
from graphopt.targets.cpu.kernels.tiles import Tiles
from graphopt.targets.kernels import script
from graphopt.targets.kernels.bounds import check_policy, is_allowed, row_of
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.pooling import Plan, Pooling
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes, extent, vector_lanes


@dataclass(frozen=True)
class PoolingParams:
    """How rows of a table are read and added up.

    Attributes:
        ahead: as of `LookupParams`.
        vectors: accumulated at once; a wider row takes several passes over the ids.
    """

    ahead: int
    vectors: int = 8


def pooling_params(table_bytes: int) -> PoolingParams:
    """Parameters for a table of that size."""
    return PoolingParams(lookup_params(table_bytes).ahead)


@dataclass(frozen=True)
class _Plan(Plan):
    """How the CPU goes through the rows.

    Attributes:
        stored: the dtype of the table's buffer; bfloat16 is read as its bits and pooled as float32.
    """

    stored: str
    given: PoolingParams | None = None

    @staticmethod
    def of(
        rows: int,
        dim: int,
        dtype: str,
        index_dtype: str,
        pooling: Pooling,
        params: PoolingParams | None = None,
    ) -> "_Plan":
        pooled, stored = ("float32", "uint16") if dtype == "bfloat16" else (dtype, dtype)
        return _Plan(rows, dim, pooled, index_dtype, pooling, stored, params)

    @property
    def params(self) -> PoolingParams:
        return self.given or pooling_params(self.rows * self.dim * self.align)

    @property
    def align(self) -> int:
        return element_bytes(self.stored)

    @property
    def tiles(self) -> Tiles:
        return Tiles(self.dim, vector_lanes(self.accumulator), self.params.vectors)

    def element(self, src, row, column):
        """An element of the table."""
        if self.stored == self.dtype:
            return src[row, column]
        return T.reinterpret("float32", T.Cast("uint32", src[row, column]) << T.uint32(16))


@inlined
def _add_row(plan, acc, src, row, part, weight):
    for v in T.unroll(plan.tiles.vectors):
        for j in T.vectorized(plan.tiles.lanes):
            element = T.meta_var(plan.element(src, row, plan.tiles.column(part, v) + j))
            acc[v, j] = plan.combined(acc[v, j], element, weight)


@inlined
def _add_zeros(plan, acc):
    for v in T.unroll(plan.tiles.vectors):
        for j in T.vectorized(plan.tiles.lanes):
            acc[v, j] = plan.combined(acc[v, j], 0.0, 1.0)


@inlined
def _store_bag(plan, dst, bag, part, acc, count):
    for v in T.unroll(plan.tiles.vectors):
        for j in T.vectorized(plan.tiles.lanes):
            dst[bag, plan.tiles.column(part, v) + j] = plan.pooled(acc[v, j], count)


@inlined
def _pool_bag(plan, src, ids, weights, dst, bag, first, last, start, rows):
    """dst[bag, :] = pooled rows of ids[first:last]; the table is `rows` rows from `start` on."""
    acc = T.alloc_buffer((plan.tiles.vectors, plan.tiles.lanes), plan.accumulator, scope="local")
    for part in range(plan.tiles.count):
        count: T.int64 = 0
        for v in T.unroll(plan.tiles.vectors):
            for j in T.vectorized(plan.tiles.lanes):
                acc[v, j] = T.Cast(plan.accumulator, plan.nothing)
        for i in range(last - first):
            at = T.Cast("int64", ids[first + i])
            assert is_allowed(at, rows, plan.pooling.oob), plan.pooling.message
            if plan.params.ahead > 0:
                prefetch_row(
                    src, ids, first + i, start, rows, plan.dim, plan.align, plan.params.ahead
                )
            if plan.counts(at):
                count = count + 1
                if plan.is_valid(at, rows):
                    row = start + row_of(at, rows, plan.pooling.oob)
                    scale = T.meta_var(plan.weight(weights, bag, i, first + i))
                    _add_row(plan, acc, src, row, part, scale)
                else:
                    _add_zeros(plan, acc)
        _store_bag(plan, dst, bag, part, acc, count)


@inlined
def _csr_bags(plan, ends_given, src, rows, ids, offsets, weights, dst, bags, n):
    for bag in range(bags):
        first = T.Cast("int64", offsets[bag])
        last = (
            T.Cast("int64", offsets[bag + 1])
            if ends_given
            else T.if_then_else(bag + 1 < bags, T.Cast("int64", offsets[bag + 1]), n)
        )
        if plan.pooling.oob == "error":
            assert (first >= 0) & (first <= last) & (last <= n), plan.pooling.offsets_message
            _pool_bag(plan, src, ids, weights, dst, bag, first, last, 0, rows)
        else:
            begin = T.max(T.min(first, n), T.int64(0))
            end = T.max(T.min(last, n), begin)
            _pool_bag(plan, src, ids, weights, dst, bag, begin, end, 0, rows)


@cache
def embedding_bag(
    rows: int | None,
    dim: int,
    dtype: str,
    index_dtype: str,
    offset_dtype: str,
    pooling: Pooling,
    include_last_offset: bool = False,
    params: PoolingParams | None = None,
) -> PrimFunc:
    """Kernel (table[rows, dim], ids[n], offsets[b], weights[n] if weighted) -> out[b, dim].

    Bag `i` holds ids[offsets[i]:offsets[i + 1]], the last one everything from offsets[b - 1] on;
    with `include_last_offset` offsets has b + 1 entries instead.  `n` and `b` are symbolic, and so
    are `rows` given as None: a table that the model computes, without padding.
    Offsets must not decrease and must lie in [0, n]: under "error" the kernel stops, under the
    other policies they are clamped.  Neither ids nor the table is ever read outside its extent.
    A table of bfloat16 is given as its bits, uint16, and pooled to float32.
    """
    plan, size = _Plan.of(rows or 0, dim, dtype, index_dtype, pooling, params), extent("rows", rows)
    check_policy(pooling.oob, offset_dtype)
    align, id_align, offset_align = map(element_bytes, (dtype, index_dtype, offset_dtype))
    n, b = tirx.Var("n", "int64"), tirx.Var("b", "int64")
    m = tirx.Var("b_plus_1", "int64") if include_last_offset else b
    bags = m - 1 if include_last_offset else b

    @script.prim_func(private=True, s_tir=True)
    def embedding_bag(
        table: T.handle, ids: T.handle, offsets: T.handle, weights: T.handle, out: T.handle
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        src = T.match_buffer(table, (size, dim), plan.stored, align=align)
        index = T.match_buffer(ids, (n,), index_dtype, align=id_align)
        offset = T.match_buffer(offsets, (m,), offset_dtype, align=offset_align)
        weight = T.match_buffer(weights, (n,), dtype, align=align)
        dst = T.match_buffer(out, (bags, dim), plan.dtype, align=element_bytes(plan.dtype))
        _csr_bags(plan, include_last_offset, src, size, index, offset, weight, dst, bags, n)

    return embedding_bag if pooling.weighted else without_parameters(embedding_bag, "weight")


@cache
def fixed_bag(
    rows: int | None,
    dim: int,
    bag_len: int | None,
    dtype: str,
    index_dtype: str,
    pooling: Pooling,
    params: PoolingParams | None = None,
) -> PrimFunc:
    """Kernel (table[rows, dim], ids[b, bag_len], weights[b, bag_len] if weighted) -> out[b, dim].

    One bag a row of ids.  `b` is symbolic, and so are `rows` (of a table without padding) and a
    `bag_len` given as None. A table of bfloat16 is given as its bits, uint16, and pooled to
    float32.
    """
    plan = _Plan.of(rows or 0, dim, dtype, index_dtype, pooling, params)
    align, id_align = element_bytes(dtype), element_bytes(index_dtype)
    b, size, most = tirx.Var("b", "int64"), extent("bag_len", bag_len), extent("rows", rows)

    @script.prim_func(private=True, s_tir=True)
    def fixed_bag(table: T.handle, ids: T.handle, weights: T.handle, out: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        src = T.match_buffer(table, (most, dim), plan.stored, align=align)
        index = T.match_buffer(ids, (b, size), index_dtype, align=id_align)
        weight = T.match_buffer(weights, (b, size), dtype, align=align)
        dst = T.match_buffer(out, (b, dim), plan.dtype, align=element_bytes(plan.dtype))
        flat = T.decl_buffer((b * size,), index_dtype, data=index.data, align=id_align)
        for bag in range(b):
            _pool_bag(plan, src, flat, weight, dst, bag, bag * size, (bag + 1) * size, 0, most)

    return fixed_bag if pooling.weighted else without_parameters(fixed_bag, "weight")


@cache
def embedding_bags(
    total: int,
    fields: int,
    dim: int,
    index_dtype: str,
    offset_dtype: str,
    pooling: Pooling,
    include_last_offset: bool = False,
) -> PrimFunc:
    """Kernel (tables[total, dim], extents[2, fields], begins[fields + 1], ids[n],
    offsets[fields, b]) -> out[b, fields, dim], rows being float32.

    `extents` holds the first row of every field's table and its number of rows, at least 1;
    `begins` where the ids of each field begin in `ids`, and `n`. Offsets count from there, and are
    to the ids of one field what they are to `embedding_bag`; so are ids to the field's table.
    """
    plan = _Plan.of(total, dim, "float32", index_dtype, pooling)
    check_policy(pooling.oob, offset_dtype)
    b = tirx.Var("b", "int64")
    width = tirx.Var("b_plus_1", "int64") if include_last_offset else b
    bags = width - 1 if include_last_offset else b
    checks = pooling.oob == "error"

    @script.prim_func(private=True, s_tir=True)
    def embedding_bags(
        tables: T.handle,
        extents: T.handle,
        begins: T.handle,
        ids: T.handle,
        offsets: T.handle,
        out: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        n = T.int64()
        src = T.match_buffer(tables, (total, dim), "float32", align=4)
        extent = T.match_buffer(extents, (2, fields), "int64", align=8)
        begin = T.match_buffer(begins, (fields + 1,), "int64", align=8)
        index = T.match_buffer(ids, (n,), index_dtype, align=element_bytes(index_dtype))
        offset = T.match_buffer(
            offsets, (fields, width), offset_dtype, align=element_bytes(offset_dtype)
        )
        typed_out = T.match_buffer(out, (bags, fields, dim), "float32", align=4)
        dst = T.decl_buffer((bags * fields, dim), "float32", data=typed_out.data, align=4)
        for bag, k in T.grid(bags, fields):
            size = begin[k + 1] - begin[k]
            first = T.Cast("int64", offset[k, bag])
            last = T.if_then_else(
                bag + 1 < width, T.Cast("int64", offset[k, T.min(bag + 1, width - 1)]), size
            )
            if checks:
                assert (first >= 0) & (first <= last) & (last <= size), pooling.offsets_message
            opens = T.max(T.min(first, size), T.int64(0))
            closes = T.max(T.min(last, size), opens)
            _pool_bag(
                plan, src, index, index, dst, bag * fields + k,
                begin[k] + opens, begin[k] + closes, extent[0, k], extent[1, k],
            )  # fmt: skip

    return embedding_bags
