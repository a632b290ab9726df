"""Codes of 8 bits that are looked up for others: in registers where a CPU permutes bytes."""

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.kernels import script

CODES = 256
_BYTES = 64  # of a vector


@cache
def code_table(permutes: bool, dtype: str = "uint8") -> PrimFunc:
    """Kernel (q[n], table uint8[256]) -> uint8[n]: table[q] by the bits of q; n is symbolic.

    Args:
        permutes: the target has AVX512-VBMI, of which one instruction looks 64 bytes up among 128.
        dtype: of q, uint8 or int8.
    """

    def looked_up(tables, codes):
        lower, upper = (
            T.call_llvm_pure_intrin(
                "uint8x64", "llvm.x86.avx512.vpermi2var.qi.512", tables[k], codes, tables[k + 1]
            )
            for k in (0, 2)
        )
        return T.Select(codes < T.Broadcast(T.uint8(2 * _BYTES), _BYTES), lower, upper)

    @script.prim_func(private=True, s_tir=True)
    def code_table(codes: T.handle, table_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        n = T.int64()
        given = T.match_buffer(codes, (n,), dtype, align=1)
        table = T.match_buffer(table_, (CODES,), "uint8", align=1)
        out = T.match_buffer(out_, (n,), "uint8", align=1)
        q = T.decl_buffer((n,), "uint8", data=given.data, align=1)
        if permutes:
            first = T.bind(table[T.ramp(0, 1, _BYTES)])
            second = T.bind(table[T.ramp(_BYTES, 1, _BYTES)])
            third = T.bind(table[T.ramp(2 * _BYTES, 1, _BYTES)])
            fourth = T.bind(table[T.ramp(3 * _BYTES, 1, _BYTES)])
            for chunk in range(n // _BYTES):
                out[T.ramp(chunk * _BYTES, 1, _BYTES)] = looked_up(
                    (first, second, third, fourth), q[T.ramp(chunk * _BYTES, 1, _BYTES)]
                )
            for k in range(n % _BYTES):
                at = T.meta_var(n - n % _BYTES + k)
                out[at] = table[T.Cast("int32", q[at])]
        else:
            for i in range(n):
                out[i] = table[T.Cast("int32", q[i])]

    return code_table
