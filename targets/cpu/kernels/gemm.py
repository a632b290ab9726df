"""Packed float32 GEMM with its bias, its activation and elementwise operands at the store.

The weights of a model are known when it is compiled, so they are packed once into column panels
`[ceil(N / width)][K][width]` that the kernel reads from front to back.  A block of rows keeps its
results in registers for the whole of K; the bias is what they start from.  (The scheme of BLIS:
Van Zee and van de Geijn, "BLIS: A Framework for Rapidly Instantiating BLAS Functionality", 2015,
without its packing of the left operand, which the batches of a recommender are too small to repay.)

Weights may have 8 bits and a scale per column.  They become float32 in registers, each vector once
for all rows of a block, and the scale is left for the store; so a fourth of the bytes is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.inlining import inlined
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.storage import element_bytes

Step = Literal["mul", "add"]
"""What an operand does to the result: multiply it, or add to it, element by element."""
MAX_STEPS = 2
MAX_ROWS = 16


@dataclass(frozen=True)
class GemmParams:
    """How the kernel uses registers.

    Attributes:
        lanes: float32 elements in one vector register.
        vectors: vector registers across the columns of a panel.
        rows: rows of the left operand computed together, at most `MAX_ROWS`.
    """

    lanes: int
    vectors: int
    rows: int

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= MAX_ROWS:
            raise ValueError(f"a block has 1 to {MAX_ROWS} rows, not {self.rows}")

    @property
    def width(self) -> int:
        """Columns of a panel."""
        return self.lanes * self.vectors

    def panels(self, n: int) -> int:
        """Panels for `n` columns."""
        return -(-n // self.width)

    @property
    def blocks(self) -> list[int]:
        """Block heights that make up any number of rows: `rows`, then the powers of two below."""
        below = (self.rows - 1).bit_length() if self.rows > 1 else 0
        return [self.rows, *(1 << power for power in reversed(range(below)))]


def registers(lanes: int) -> tuple[int, int]:
    """How many vector registers there are, and how many of them a panel is wide at most."""
    return (32, 4) if lanes == 16 else (16, 2)


def default_params(n: int, lanes: int) -> GemmParams:
    """Parameters for `n` columns: as little padding as possible, then as many accumulators."""
    available, widest = registers(lanes)

    def padded(vectors: int) -> int:
        return -(-n // (lanes * vectors)) * vectors

    vectors = min(range(1, widest + 1), key=lambda v: (padded(v), -v))
    return GemmParams(lanes, vectors, rows=min(12, (available - vectors - 1) // vectors))


def pack_weights(weights: np.ndarray, params: GemmParams) -> np.ndarray:
    """float32 or int8 [K, N] as [panels, K, width]; columns beyond N are zero."""
    k, n = weights.shape
    panels = params.panels(n)
    dtype = np.int8 if weights.dtype == np.int8 else np.float32
    padded = np.zeros((k, panels * params.width), dtype)
    padded[:, :n] = weights
    return np.ascontiguousarray(padded.reshape(k, panels, -1).transpose(1, 0, 2))


def pack_bias(bias: np.ndarray | None, n: int, params: GemmParams) -> np.ndarray:
    """float32[N] (None for zeros) as float32[panels * width]."""
    padded = np.zeros(params.panels(n) * params.width, np.float32)
    if bias is not None:
        padded[:n] = bias
    return padded


def checked_steps(steps: tuple[Step, ...]) -> None:
    """ValueError if there are more steps than MAX_STEPS, or one that does not exist."""
    if len(steps) > MAX_STEPS or not set(steps) <= set(get_args(Step)):
        raise ValueError(f"at most {MAX_STEPS} steps out of {get_args(Step)}, not {steps}")


def combined(
    steps: Sequence[Step], value: Any, operands: Sequence[Any], row: Any, column: Any
) -> Any:
    """`value`, changed by the element of each operand at its place as its step says."""
    for step, operand in zip(steps, operands):
        other = operand[row, column]
        value = value * other if step == "mul" else value + other
    return value


@cache
def gemm(
    k: int,
    n: int,
    params: GemmParams,
    activation: Activation | str = "none",
    alpha: float | None = None,
    steps: tuple[Step, ...] = (),
    codes: bool = False,
) -> PrimFunc:
    """Kernel (x[M, k], weights[panels, k, width], bias[panels * width], *others[M, n]) -> y[M, n].

    y = activation(x @ weights + bias), all float32 and M symbolic, after which each of `steps`
    combines it with the operand of its place among `others`.  Sums run over k in order, in fused
    multiply-adds where the target has them, whatever M is.  An activation given by name has the
    constant `alpha`, or its default one.  NaN stays NaN.

    With `codes` the weights are int8 and scale[panels * width] comes after the bias:
    y = activation((x @ weights) * scale + bias).

    Raises:
        ValueError: there are more steps than MAX_STEPS, or one that does not exist.
    """
    checked_steps(steps)
    lanes, vectors, width = params.lanes, params.vectors, params.width
    panels, blocks, align = params.panels(n), params.blocks, element_bytes("float32")
    stored = "int8" if codes else "float32"

    activated = activation if isinstance(activation, Activation) else Activation(activation, alpha)

    def rest(m, level):
        """Rows left over by the blocks before `level`."""
        for height in blocks[:level]:
            m = m % height
        return m

    def as_float(vector):
        return T.Cast(f"float32x{lanes}", vector) if codes else vector

    @inlined
    def store(b, s, y, row, column, acc, at, operands):
        if codes:
            for lane in T.vectorized(lanes):
                acc[at + lane] = acc[at + lane] * s[column + lane] + b[column + lane]
        if column + lanes <= n:
            for lane in T.vectorized(lanes):
                y[row, column + lane] = combined(
                    steps, activated(acc[at + lane]), operands, row, column + lane
                )
        else:
            for lane in T.vectorized(lanes):
                acc[at + lane] = activated(acc[at + lane])
            for lane in range(lanes):
                if column + lane < n:
                    y[row, column + lane] = combined(
                        steps, acc[at + lane], operands, row, column + lane
                    )

    @inlined
    def block(x, w, b, s, y, operands, first, panel, height):
        acc = T.alloc_buffer((height * width,), "float32", scope="local")
        for r in T.unroll(height):
            for v in T.unroll(vectors):
                acc[T.ramp(r * width + v * lanes, 1, lanes)] = (
                    T.Broadcast(T.float32(0), lanes)
                    if codes
                    else b[T.ramp(panel * width + v * lanes, 1, lanes)]
                )
        for kk in range(k):
            for r in T.unroll(height):
                for v in T.unroll(vectors):
                    acc[T.ramp(r * width + v * lanes, 1, lanes)] = acc[
                        T.ramp(r * width + v * lanes, 1, lanes)
                    ] + T.Broadcast(x[first + r, kk], lanes) * as_float(
                        w[panel, kk, T.ramp(v * lanes, 1, lanes)]
                    )
        for r in T.unroll(height):
            for v in T.unroll(vectors):
                column, at = (
                    T.meta_var(panel * width + v * lanes),
                    T.meta_var(r * width + v * lanes),
                )
                store(b, s, y, first + r, column, acc, at, operands)

    @inlined
    def level(x, w, b, s, y, operands, m, panel, depth):
        if depth < len(blocks):
            for i in range(rest(m, depth) // blocks[depth]):
                row = m - rest(m, depth) + i * blocks[depth]
                block(x, w, b, s, y, operands, row, panel, blocks[depth])

    @T.prim_func(private=True, s_tir=True)
    def gemm(
        x: T.handle,
        weights: T.handle,
        bias: T.handle,
        scale: T.handle,
        p: T.handle,
        q: T.handle,
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        m = T.int64()
        left = T.match_buffer(x, (m, k), "float32", align=align)
        right = T.match_buffer(weights, (panels, k, width), stored, align=element_bytes(stored))
        start = T.match_buffer(bias, (panels * width,), "float32", align=align)
        factor = T.match_buffer(scale, (panels * width,), "float32", align=align)
        first = T.match_buffer(p, (m, n), "float32", align=align)
        second = T.match_buffer(q, (m, n), "float32", align=align)
        out = T.match_buffer(y, (m, n), "float32", align=align)
        for panel in range(panels):
            level(left, right, start, factor, out, (first, second), m, panel, 0)
            level(left, right, start, factor, out, (first, second), m, panel, 1)
            level(left, right, start, factor, out, (first, second), m, panel, 2)
            level(left, right, start, factor, out, (first, second), m, panel, 3)
            level(left, right, start, factor, out, (first, second), m, panel, 4)

    unused = ("first", "second")[len(steps) :]
    return without_parameters(gemm, *unused if codes else ("factor", *unused))
