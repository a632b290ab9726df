"""Cross layers with weight vectors: dot products of a row with them, then one multiple of it."""

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.kernels import script
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes


@cache
def cross_network(dim: int, layers: int, lanes: int) -> PrimFunc:
    """Kernel (x[n, dim], weights[layers, dim], shifts[layers], bias[dim]) -> out[n, dim].

    a = 1, then a = a * (1 + x . weights[l]) + shifts[l] for each l; out = a * x + bias. float32,
    `n` symbolic.

    Args:
        lanes: float32 elements in a vector register, a power of two.
    """
    align = element_bytes("float32")
    whole = dim // lanes * lanes

    @inlined
    def halve(total, width):
        if width > 0:
            for lane in T.vectorized(width):
                total[lane] = total[lane] + total[width + lane]

    @inlined
    def dot(total, x, w, n, layer):
        for lane in T.vectorized(lanes):
            total[lane] = T.float32(0)
        for part in range(dim // lanes):
            for lane in T.vectorized(lanes):
                total[lane] = (
                    total[lane] + x[n, part * lanes + lane] * w[layer, part * lanes + lane]
                )
        halve(total, lanes // 2)
        halve(total, lanes // 4)
        halve(total, lanes // 8)
        halve(total, lanes // 16)
        for j in range(dim - whole):
            total[0] = total[0] + x[n, whole + j] * w[layer, whole + j]

    @script.prim_func(private=True, s_tir=True)
    def cross_network(
        x_: T.handle, weights_: T.handle, shifts_: T.handle, bias_: T.handle, out_: T.handle
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, dim), "float32", align=align)
        w = T.match_buffer(weights_, (layers, dim), "float32", align=align)
        shifts = T.match_buffer(shifts_, (layers,), "float32", align=align)
        bias = T.match_buffer(bias_, (dim,), "float32", align=align)
        out = T.match_buffer(out_, (rows, dim), "float32", align=align)
        for n in range(rows):
            multiple = T.alloc_buffer((1,), "float32", scope="local")
            total = T.alloc_buffer((lanes,), "float32", scope="local")
            multiple[0] = T.float32(1)
            for layer in range(layers):
                dot(total, x, w, n, layer)
                multiple[0] = multiple[0] * (total[0] + T.float32(1)) + shifts[layer]
            for j in range(dim):
                out[n, j] = multiple[0] * x[n, j] + bias[j]

    return cross_network
