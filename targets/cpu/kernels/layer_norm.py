"""Layer normalization of rows: two passes for the moments, one for the result, all in cache."""

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.folding import reducing
from graphopt.targets.kernels import script
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes


@cache
def layer_norm(dim: int, epsilon: float, lanes: int, centred: bool = True) -> PrimFunc:
    """Kernel (x[rows, dim], scale[dim], shift[dim]) -> y[rows, dim], `rows` symbolic.

    y = (x - mean) / sqrt(variance + epsilon) * scale + shift, moments over each row. float32, the
    sums in as many parts as a vector has lanes. NaN spreads over its row.

    Args:
        lanes: float32 elements in a vector register.
        centred: False takes every mean for 0, which is root mean square normalization.
    """
    align, width = element_bytes("float32"), min(lanes, 1 << (dim.bit_length() - 1))
    chunks, rest, add_up = dim // width, dim % width, reducing(width)

    @inlined
    def mean_of(acc, x, row):
        for lane in T.vectorized(width):
            acc[lane] = x[row, lane]
        for chunk in range(1, chunks):
            for lane in T.vectorized(width):
                acc[lane] = acc[lane] + x[row, chunk * width + lane]
        add_up(acc, 0)
        for k in range(rest):
            acc[0] = acc[0] + x[row, chunks * width + k]

    @inlined
    def variance_of(acc, x, row, mean):
        for lane in T.vectorized(width):
            acc[lane] = T.float32(0)
        for chunk in range(chunks):
            for lane in T.vectorized(width):
                part = T.meta_var(x[row, chunk * width + lane] - mean[0])
                acc[lane] = acc[lane] + part * part
        add_up(acc, 0)
        for k in range(rest):
            part = T.meta_var(x[row, chunks * width + k] - mean[0])
            acc[0] = acc[0] + part * part

    @script.prim_func(private=True, s_tir=True)
    def layer_norm(x_: T.handle, scale_: T.handle, shift_: T.handle, y_: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        rows = T.int64()
        x = T.match_buffer(x_, (rows, dim), "float32", align=align)
        scale = T.match_buffer(scale_, (dim,), "float32", align=align)
        shift = T.match_buffer(shift_, (dim,), "float32", align=align)
        y = T.match_buffer(y_, (rows, dim), "float32", align=align)
        for row in range(rows):
            acc = T.alloc_buffer((width,), "float32", scope="local")
            mean = T.alloc_buffer((1,), "float32", scope="local")
            inverse = T.alloc_buffer((1,), "float32", scope="local")
            mean[0] = T.float32(0)
            if centred:
                mean_of(acc, x, row)
                mean[0] = acc[0] / T.float32(dim)
            variance_of(acc, x, row, mean)
            inverse[0] = T.float32(1) / T.sqrt(acc[0] / T.float32(dim) + T.float32(epsilon))
            for chunk in range(chunks):
                for lane in T.vectorized(width):
                    column = T.meta_var(chunk * width + lane)
                    y[row, column] = (x[row, column] - mean[0]) * inverse[0] * scale[
                        column
                    ] + shift[column]
            for k in range(rest):
                column = T.meta_var(chunks * width + k)
                y[row, column] = (x[row, column] - mean[0]) * inverse[0] * scale[column] + shift[
                    column
                ]

    return layer_norm
