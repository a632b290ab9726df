"""Rows of floats as codes of 8 bits, each row in its own range, for products of bytes."""

from __future__ import annotations

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cuda.kernels.gemm import coded_width
from graphopt.targets.kernels import script

THREADS = 128
_WARP = 32


@cache
def row_codes(k: int, levels: int) -> PrimFunc:
    """Kernel x[M, k] -> uint32[M, coded_width(k)], M symbolic: `CodedRow` of `device/math.cuh`.

    Ranges and codes are those of `graphopt::DynamicMatMul`. A row is read once up to 1024 elements,
    and depends on nothing but itself.
    """
    # As many threads a row as there are pieces of 16 bytes; four write what follows the codes.
    group = min(_WARP, max(4, 1 << (-(-k // 4) - 1).bit_length()))
    each = THREADS // group
    function = f"graphopt::row_codes<{k}, {group}, {levels}>"

    @script.prim_func(private=True, s_tir=True)
    def row_codes(x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        m = T.int64()
        rows = T.match_buffer(x, (m, k), "float32")
        codes = T.match_buffer(y, (m, coded_width(k)), "uint32")
        if m > 0:
            for block in T.thread_binding((m + each - 1) // each, thread="blockIdx.x"):
                for thread in T.thread_binding(THREADS, thread="threadIdx.x"):
                    row = T.meta_var(T.Cast("int32", block * each + thread // group))
                    sizes = T.meta_var((T.Cast("int32", m), row))
                    T.evaluate(T.call_extern("void", function, codes.data, rows.data, *sizes))

    return row_codes
