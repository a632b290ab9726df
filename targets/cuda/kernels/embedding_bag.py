"""Embedding bags on a GPU: a thread per element of the result, which adds up its column of the bag.

Neighbouring threads read neighbouring columns of the same row, so a warp reads whole lines. What
counts, and how rows become one, is as on the CPU. No id is read outside the table: the policy of
`Plan.pooling` is "clamp" or "zero".
"""

from functools import cache

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.kernels.bounds import row_of
from graphopt.targets.kernels.inlining import inlined
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.pooling import Plan
from graphopt.targets.kernels.storage import extent

THREADS = 256


@inlined
def _pool(plan, src, ids, weights, dst, bag, column, first, last):
    """dst[bag, column] = that column of the rows of ids[first:last], pooled."""
    acc = T.alloc_buffer((1,), plan.accumulator, scope="local")
    count: T.int64 = 0
    acc[0] = T.Cast(plan.accumulator, plan.nothing)
    for i in range(last - first):
        at = T.Cast("int64", ids[first + i])
        if plan.counts(at):
            count = count + 1
            if plan.is_valid(at, plan.rows):
                row = row_of(at, plan.rows, plan.pooling.oob)
                scale = T.meta_var(plan.weight(weights, bag, i, first + i))
                acc[0] = plan.combined(acc[0], src[row, column], scale)
            else:
                acc[0] = plan.combined(acc[0], 0.0, 1.0)
    dst[bag, column] = plan.pooled(acc[0], count)


@cache
def embedding_bag(plan: Plan, offset_dtype: str, include_last_offset: bool) -> PrimFunc:
    """Kernel (table[rows, dim], ids[n], offsets[b], weights[n] if weighted) -> out[b, dim].

    As the CPU's kernel of this name, but that bad offsets are limited to [0, n].
    """
    rows, dim, dtype, index_dtype = plan.rows, plan.dim, plan.dtype, plan.index_dtype
    n, b = tirx.Var("n", "int64"), tirx.Var("b", "int64")
    m = tirx.Var("b_plus_1", "int64") if include_last_offset else b
    bags = m - 1 if include_last_offset else b

    @T.prim_func(private=True, s_tir=True)
    def embedding_bag(
        table: T.handle, ids: T.handle, offsets: T.handle, weights: T.handle, out: T.handle
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        src = T.match_buffer(table, (rows, dim), dtype)
        index = T.match_buffer(ids, (n,), index_dtype)
        offset = T.match_buffer(offsets, (m,), offset_dtype)
        weight = T.match_buffer(weights, (n,), dtype)
        dst = T.match_buffer(out, (bags, dim), dtype)
        for block in T.thread_binding((bags * dim + THREADS - 1) // THREADS, thread="blockIdx.x"):
            for thread in T.thread_binding(THREADS, thread="threadIdx.x"):
                if block * THREADS + thread < bags * dim:
                    bag = (block * THREADS + thread) // dim
                    column = (block * THREADS + thread) % dim
                    first = T.max(T.min(T.Cast("int64", offset[bag]), n), T.int64(0))
                    last = (
                        T.Cast("int64", offset[bag + 1])
                        if include_last_offset
                        else T.if_then_else(bag + 1 < bags, T.Cast("int64", offset[bag + 1]), n)
                    )
                    end = T.max(T.min(last, n), first)
                    _pool(plan, src, index, weight, dst, bag, column, first, end)

    return embedding_bag if plan.pooling.weighted else without_parameters(embedding_bag, "weight")


@cache
def fixed_bag(plan: Plan, bag_len: int | None) -> PrimFunc:
    """Kernel (table[rows, dim], ids[b, bag_len], weights[b, bag_len] if weighted) -> out[b, dim].

    One bag a row of ids. `b` is symbolic, and so is a `bag_len` given as None.
    """
    rows, dim, dtype, index_dtype = plan.rows, plan.dim, plan.dtype, plan.index_dtype
    b, size = tirx.Var("b", "int64"), extent("bag_len", bag_len)

    @T.prim_func(private=True, s_tir=True)
    def fixed_bag(table: T.handle, ids: T.handle, weights: T.handle, out: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        src = T.match_buffer(table, (rows, dim), dtype)
        index = T.match_buffer(ids, (b, size), index_dtype)
        weight = T.match_buffer(weights, (b, size), dtype)
        dst = T.match_buffer(out, (b, dim), dtype)
        flat = T.decl_buffer((b * size,), index_dtype, data=index.data)
        for block in T.thread_binding((b * dim + THREADS - 1) // THREADS, thread="blockIdx.x"):
            for thread in T.thread_binding(THREADS, thread="threadIdx.x"):
                if block * THREADS + thread < b * dim:
                    bag = (block * THREADS + thread) // dim
                    column = (block * THREADS + thread) % dim
                    _pool(plan, src, flat, weight, dst, bag, column, bag * size, (bag + 1) * size)

    return fixed_bag if plan.pooling.weighted else without_parameters(fixed_bag, "weight")
