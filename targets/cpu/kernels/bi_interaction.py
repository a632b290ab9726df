"""Square of the sum less sum of the squares over the features of a sample, in one pass."""

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.kernels import script
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes, extent


@cache
def bi_interaction(
    features: int | None, dim: int, scale: float, pooled: bool, lanes: int
) -> PrimFunc:
    """Kernel (x[n, features, dim]) -> out[n, dim], or out[n, 1] if `pooled`; `n` is symbolic.

    out = scale * ((sum over features of x)^2 - sum over features of x^2), float32; `pooled` adds up
    its columns. `features` given as None is symbolic.

    Args:
        lanes: float32 elements in a vector register, a power of two.
    """
    align = element_bytes("float32")
    count = extent("features", features)
    whole, columns = dim // lanes, 1 if pooled else dim

    @inlined
    def columns_from(x, out, total, n, first, width):
        """Columns `first` to `first + width` of one sample."""
        added = T.alloc_buffer((width,), "float32", scope="local")
        squared = T.alloc_buffer((width,), "float32", scope="local")
        for lane in T.vectorized(width):
            added[lane] = T.float32(0)
        for lane in T.vectorized(width):
            squared[lane] = T.float32(0)
        for f in range(count):
            for lane in T.vectorized(width):
                added[lane] = added[lane] + x[n, f, first + lane]
            for lane in T.vectorized(width):
                squared[lane] = squared[lane] + x[n, f, first + lane] * x[n, f, first + lane]
        for lane in T.vectorized(width):
            squared[lane] = added[lane] * added[lane] - squared[lane]
        for lane in T.vectorized(width):
            if pooled:
                total[lane] = total[lane] + squared[lane]
            else:
                out[n, first + lane] = squared[lane] * T.float32(scale)

    @inlined
    def remainder(x, out, total, n, width):
        if width > 0 and dim & width > 0:
            columns_from(x, out, total, n, dim - dim % (2 * width), width)

    @inlined
    def halve(total, width):
        if width > 0:
            for lane in T.vectorized(width):
                total[lane] = total[lane] + total[width + lane]

    @script.prim_func(private=True, s_tir=True)
    def bi_interaction(features_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        samples = T.int64()
        x = T.match_buffer(features_, (samples, count, dim), "float32", align=align)
        out = T.match_buffer(out_, (samples, columns), "float32", align=align)
        for n in range(samples):
            total = T.alloc_buffer((lanes,), "float32", scope="local")
            if pooled:
                for lane in T.vectorized(lanes):
                    total[lane] = T.float32(0)
            for part in range(whole):
                columns_from(x, out, total, n, part * lanes, lanes)
            remainder(x, out, total, n, lanes // 2)
            remainder(x, out, total, n, lanes // 4)
            remainder(x, out, total, n, lanes // 8)
            remainder(x, out, total, n, lanes // 16)
            if pooled:
                halve(total, lanes // 2)
                halve(total, lanes // 4)
                halve(total, lanes // 8)
                halve(total, lanes // 16)
                out[n, 0] = total[0] * T.float32(scale)

    return bi_interaction
