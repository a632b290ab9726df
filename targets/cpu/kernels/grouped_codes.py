"""Rows of codes, each followed by zeros up to a whole group of what one instruction adds up."""

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.row_codes import GROUP
from graphopt.targets.kernels import script


@cache
def grouped_codes(k: int) -> PrimFunc:
    """Kernel (q[m, k]) -> out[m, k'], uint8: k' is the next multiple of GROUP; m is symbolic."""
    width = k + -k % GROUP

    @script.prim_func(private=True, s_tir=True)
    def grouped_codes(codes: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        m = T.int64()
        q = T.match_buffer(codes, (m, k), "uint8", align=1)
        out = T.match_buffer(out_, (m, width), "uint8", align=1)
        for row in range(m):
            for column in range(k):
                out[row, column] = q[row, column]
            for column in range(width - k):
                out[row, k + column] = T.uint8(0)

    return grouped_codes
