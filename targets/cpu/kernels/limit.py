"""The least or the greatest of all elements, which data quantized at run time are scaled by."""

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.folding import reducing
from graphopt.targets.kernels import script
from graphopt.targets.kernels.storage import element_bytes


@cache
def limit(greatest: bool, lanes: int) -> PrimFunc:
    """Kernel (x[n]) -> out[1], `n` symbolic: the greatest, or least, of x and 0 (float32).

    What a NaN becomes is open.

    Args:
        lanes: float32 elements in a vector register.
    """
    align, choose = element_bytes("float32"), T.max if greatest else T.min
    reduce = reducing(lanes, choose)

    @script.prim_func(private=True, s_tir=True)
    def limit(x_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        n = T.int64()
        x = T.match_buffer(x_, (n,), "float32", align=align)
        out = T.match_buffer(out_, (1,), "float32", align=align)
        found = T.alloc_buffer((lanes,), "float32", scope="local")
        for lane in T.vectorized(lanes):
            found[lane] = T.float32(0)
        for chunk in range(n // lanes):
            for lane in T.vectorized(lanes):
                found[lane] = choose(found[lane], x[chunk * lanes + lane])
        reduce(found, 0)
        for at in range(n % lanes):
            found[0] = choose(found[0], x[n - n % lanes + at])
        out[0] = found[0]

    return limit
