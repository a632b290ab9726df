"""Packed GEMM in floats, with its bias, its activation and elementwise operands at the store.

The weights of a model are known when it is compiled, so they are packed once into column panels
`[ceil(N / width)][K][width]` that the kernel reads from front to back.  A block of rows keeps its
results in registers for the whole of K; the bias is what they start from.  (The scheme of BLIS:
Van Zee and van de Geijn, "BLIS: A Framework for Rapidly Instantiating BLAS Functionality", 2015,
without its packing of the left operand, which the batches of a recommender are too small to repay.)

Weights may have 8 bits and a scale per column.  They become float32 in registers, each vector once
for all rows of a block, and the scale is left for the store; so a fourth of the bytes is read.
"""

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.panel_ahead import asking, asks
from graphopt.targets.cpu.kernels.panels import (
    MAX_PARTS,
    Columns,
    Emitted,
    GemmParams,
    adding_up,
    by_blocks,
    storing,
    whole_matrix,
)
from graphopt.targets.kernels import script
from graphopt.targets.kernels.epilogue import PLAIN, Epilogue
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes

_CACHED = 256 << 10
"""Bytes of weights, and of rows beside them, that the second-level cache holds."""


@cache
def gemm(
    k: int,
    n: int,
    params: GemmParams,
    epilogue: Epilogue = PLAIN,
    stored: str = "float32",
    parts: tuple[Columns, ...] = (),
    far: bool = False,
    dtype: str = "float32",
) -> PrimFunc:
    """Kernel (x[M, k], weights[panels, k, width], bias[panels * width], columns, *operands)
    -> y[M, n].

    y = x @ weights + bias after the epilogue, whose constants per column are packed like the bias;
    all is float32, or `dtype`, and M symbolic.  Sums run over k in order, in fused multiply-adds
    where the target has them, whatever M is.  NaN stays NaN.

    With `parts`, x is made of these columns of as many matrices, which come first; at most
    MAX_PARTS.

    Weights are `stored` as float32, bfloat16 or int8. For int8, scale[panels * width] comes after
    the bias: y = (x @ weights) * scale + bias after the epilogue.

    float64 is `stored` as that, has half as many lanes, and the plain epilogue.

    Weights that are `far` come from memory each time (`panel_ahead`).
    """
    panels, width, align = params.panels(n), params.width, element_bytes(dtype)
    constants = max(1, epilogue.activation.columns)
    store, data = storing(n, params.lanes, epilogue), parts or whole_matrix(k)
    wide = [part.source for part in data] + [1] * MAX_PARTS
    size, bits = element_bytes(stored), "uint16" if stored == "bfloat16" else stored
    ahead = asking(k, params, size, far) if asks(k, panels, params, size) else None
    visit = by_blocks(
        params, panels, _block(data, params, stored, store, ahead, dtype), ahead is None
    )
    at_a_time = _rows_at_a_time(k, panels * width, params, align)

    @script.prim_func(private=True, s_tir=True)
    def gemm(
        x: T.handle,
        x1: T.handle,
        x2: T.handle,
        x3: T.handle,
        weights: T.handle,
        bias: T.handle,
        scale: T.handle,
        c: T.handle,
        p: T.handle,
        q: T.handle,
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        m, fewer, least = T.int64(), T.int64(), T.int64()
        left = T.match_buffer(x, (m, wide[0]), dtype, align=align)
        left1 = T.match_buffer(x1, (m, wide[1]), dtype, align=align)
        left2 = T.match_buffer(x2, (m, wide[2]), dtype, align=align)
        left3 = T.match_buffer(x3, (m, wide[3]), dtype, align=align)
        right = T.match_buffer(weights, (panels, k, width), bits, align=size)
        start = T.match_buffer(bias, (panels * width,), dtype, align=align)
        factor = T.match_buffer(scale, (panels * width,), dtype, align=align)
        columns = T.match_buffer(c, (constants, panels * width), dtype, align=align)
        first = T.match_buffer(p, (epilogue.rows(0, m, fewer), n), dtype, align=align)
        second = T.match_buffer(q, (epilogue.rows(1, m, least), n), dtype, align=align)
        out = T.match_buffer(y, (m, n), dtype, align=align)
        others = T.meta_var((right, start, factor, out, (columns, first, second)))
        if at_a_time == 0:
            visit(((left, left1, left2, left3), *others, 0, m), m)
        else:
            for some in range((m + at_a_time - 1) // at_a_time):
                begin = T.meta_var(some * at_a_time)
                count = T.min(T.int64(at_a_time), m - begin)
                visit(((left, left1, left2, left3), *others, begin, count), count)

    unused = ("left1", "left2", "left3")[len(data) - 1 :] + (
        () if stored == "int8" else ("factor",)
    )
    return without_parameters(gemm, *unused, *epilogue.unused)


def _rows_at_a_time(k: int, columns: int, params: GemmParams, element: int) -> int:
    """How many rows go through all panels before the next ones do; 0 for all of them.

    Rows that stay in the second-level cache are read from memory once, not for each panel. Weights
    are then read for each of these groups, so they have to stay there too.
    """
    if element * k * columns >= _CACHED or columns == params.width:
        return 0
    return max(1, _CACHED // (element * k) // params.rows) * params.rows


def _block(
    data: tuple[Columns, ...],
    params: GemmParams,
    stored: str,
    store: Emitted,
    ahead: tuple[Emitted, Emitted] | None,
    dtype: str,
) -> Emitted:
    """For use in a kernel: `block(tensors, first, panel, height, side)` computes rows of panels."""
    lanes, vectors = params.lanes, params.vectors
    share, ask = ahead or (None, None)
    add_up = adding_up(data, params, stored, ask)

    @inlined
    def scaled(acc, s, b, column, at):
        if stored == "int8":
            for lane in T.vectorized(lanes):
                acc[at + lane] = acc[at + lane] * s[column + lane] + b[column + lane]

    @inlined
    def block(tensors, first, panel, height, side):
        x, w, b, s, y, given, begin, rows = T.meta_var(tensors)
        across = T.meta_var(side * vectors)
        acc = T.alloc_buffer((height * across * lanes,), dtype)
        if ahead is not None:
            lines = T.alloc_buffer((2,), "int64")
            share(lines, first, height, rows)
            add_up(x, w, b, acc, begin + first, panel, height, across, lines)
        else:
            add_up(x, w, b, acc, begin + first, panel, height, across)
        for r in T.unroll(height):
            for v in T.unroll(across):
                column = T.meta_var((panel * vectors + v) * lanes)
                at = T.meta_var((r * across + v) * lanes)
                scaled(acc, s, b, column, at)
                store(y, begin + first + r, column, acc, at, given)

    return block
