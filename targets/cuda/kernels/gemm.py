"""Dense layers on a GPU: the products of `device/*.cuh`, and what follows them at the store.

One kernel serves all batches: it holds a launch for each range of rows, and chooses among them by
the number of rows when it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import gcd
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.row_codes import Quantization
from graphopt.targets.kernels import script
from graphopt.targets.kernels.epilogue import PLAIN, Epilogue
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.script import inlined

Math = Literal["Fp32", "Tf32x3", "Tf32", "Bf16", "Fp16", "Int8", "Codes"]
"""How products are formed: float32 on CUDA cores; on tensor cores float32 as sums of two tf32
numbers, or operands rounded to tf32, to bfloat16, to float16 or to 8 bits ("Int8"; "Codes" are so
before, as `row_codes` makes them). Those of 8 bits add up in int32, all others in float32. Beyond
65504 a float16 is infinite."""

MAX_RANGES = 5
# Of the largest multiprocessor there is, and what a block takes of its shared memory by itself.
_SHARED, _SHARED_OF_BLOCK, _REGISTERS = 228 << 10, 1 << 10, 1 << 16
# With which tiles of floats do, and what there is beside parts of tf32 and their sums.
_LEAST_REGISTERS, _BESIDE_PARTS = 96, 48
_ON_THEIR_WAY = 6  # for four numbers that become codes: the numbers, and where they come from
_FLOAT16 = np.finfo(np.float16)
AS_LOOP = {"pragma_unroll_explicit": 0}  # nvcc unrolls it, so that the source stays short
LEAST_BLOCKS = "tirx.launch_bounds_min_blocks_per_sm"
_DEVICE = Path(__file__).parent / "device"


def device_code() -> str:
    """The functions that kernels call, in CUDA C."""
    names = ("one_of", "math", "gemm", "sources", "few_rows", "row_codes")
    return "".join((_DEVICE / f"{name}.cuh").read_text() for name in names)


def with_device_code(source: str) -> str:
    """CUDA C that TVM generated, preceded by the functions that its kernels call."""
    return device_code() + source if "graphopt::" in source else source


def packed_values(math: Math) -> int:
    """Elements of the weights in one 32-bit word."""
    return {"Bf16": 2, "Fp16": 2, "Int8": 4, "Codes": 4}.get(math, 1)


def math_for(weights: np.ndarray, math: Math) -> Math:
    """How weights[K, N] are multiplied where layers multiply as `math`.

    The same, but in tf32, which has as many bits, where float16 lacks the range: it must hold the
    largest weight of every column as a normal number, so that what it rounds off is a share of it.
    """
    if math != "Fp16":
        return math
    largest = np.abs(weights).max(axis=0, initial=0)
    held = (largest >= _FLOAT16.tiny) & (largest <= _FLOAT16.max)
    return math if np.all(held | (largest == 0)) else "Tf32"


def _left_words(math: Math) -> int:
    """32-bit words that hold x for one word of the weights: codes are packed as those are."""
    return 2 if math in ("Bf16", "Fp16") else 1


@dataclass(frozen=True)
class Tile:
    """A block of threads computes `rows` x `columns` results.

    Attributes:
        depth: words of k that a stage of shared memory holds.
        warp_rows, warp_columns: what one warp computes.
        stages: stages that are under way at a time.
        slices: groups of warps that share out the depth of a stage, and add up in the end.
    """

    rows: int
    columns: int
    depth: int
    warp_rows: int
    warp_columns: int
    stages: int
    slices: int = 1

    @property
    def threads(self) -> int:
        """Threads of a block."""
        warps = self.rows // self.warp_rows * (self.columns // self.warp_columns)
        return 32 * warps * self.slices

    def shared_words(self, math: Math) -> int:
        """32-bit words of shared memory."""
        words = _left_words(math)
        left = self.rows * (self.depth * words + (4 if words == 1 else 8))
        stages = self.stages * (left + self.depth * (self.columns + 8))
        return max(stages, (self.slices - 1) * self.rows * self.columns)

    def blocks(self, math: Math, held: int = 0) -> int:
        """Blocks of a multiprocessor for which registers suffice.

        No more than its shared memory holds: ptxas does not know of that, and spills registers to
        make room for one more.

        Args:
            held: numbers of the next stage that a thread computes while it multiplies another.
        """
        fit = _SHARED // (4 * self.shared_words(math) + _SHARED_OF_BLOCK)
        return max(1, min(fit, _REGISTERS // ((self._registers(math) + held) * self.threads)))

    def _registers(self, math: Math) -> int:
        """Of a thread, that it can do with."""
        if math == "Int8":
            return _LEAST_REGISTERS + _ON_THEIR_WAY * self.share_of_left
        if math != "Tf32x3":
            return _LEAST_REGISTERS
        operands = self.warp_rows // 2 + self.warp_columns // 2
        return self.warp_rows * self.warp_columns // 32 + operands + _BESIDE_PARTS

    @property
    def share_of_left(self) -> int:
        """Words of a stage of the left operand, for each thread."""
        return -(-self.rows * self.depth // self.threads)

    @property
    def name(self) -> str:
        """In CUDA C."""
        sizes = f"{self.rows}, {self.columns}, {self.depth}, {self.warp_rows}, {self.warp_columns}"
        return f"graphopt::Tile<{sizes}, {self.stages}, {self.slices}>"

    def call(self, arguments: str) -> str:
        """The device function."""
        return f"graphopt::gemm_tile<{self.name}, {arguments}>"


@dataclass(frozen=True)
class FewRows:
    """A block of threads computes `rows` x `columns` results, each thread along part of k."""

    rows: int
    columns: int
    threads: int

    def shared_words(self, math: Math) -> int:
        """32-bit words of shared memory."""
        return self.threads // 32 * self.rows * self.columns

    def call(self, arguments: str) -> str:
        """The device function."""
        return f"graphopt::few_rows<{self.rows}, {self.columns}, {self.threads}, {arguments}>"


@dataclass(frozen=True)
class RowDots:
    """Each of `rows` warps of a block computes a row of at most `MAX_DOTS` results."""

    rows: int


MAX_DOTS = 4
Variant = Tile | FewRows | RowDots
Range = tuple[int | None, Variant]
"""The largest number of rows, None for any, that a variant is for."""


@dataclass(frozen=True)
class _Layer:
    """What the launches of one kernel have in common."""

    k: int
    n: int
    math: Math
    epilogue: Epilogue
    rounding: Quantization | None

    @property
    def arguments(self) -> str:
        """Of the templates of device functions: how they multiply, and the sizes."""
        kind: str = self.math
        if self.rounding is not None:
            # A product may round to the neighbour of what the quotient rounds to, as on the CPU.
            inverse = (1 / np.float32(self.rounding.scale)).view(np.uint32)
            kind = f"Int8<{inverse}u, {self.rounding.zero}>"
        return f"graphopt::{kind}, {self.k}, {self.n}"

    @property
    def sums(self) -> str:
        """The dtype of what device functions find."""
        return "int32" if self.math == "Codes" else "float32"

    def stored(self, value: Any, own: _Operands, given: Any, row: Any, column: Any) -> Any:
        """A result as it is stored."""
        if self.math == "Codes":
            after = coded_width(self.k) - 4
            distance = T.reinterpret("float32", own.x[row, after])
            shift = T.reinterpret("int32", own.x[row, after + 1])
            total = T.reinterpret("int32", own.weights[-(-self.k // 4), column])
            value = T.Cast("float32", value + shift * total) * own.factor[column] * distance
        elif self.math == "Int8":
            value = value * own.factor[column]
        return self.epilogue(value + own.bias[column], given, row, column)


@dataclass(frozen=True)
class _Operands:
    """Buffers of a kernel: x and weights, a factor (of 8 bits only) and a bias of each column."""

    x: Any
    weights: Any
    factor: Any
    bias: Any


def coded_width(k: int) -> int:
    """Words of a row of `k` codes: `CodedRow` of `device/math.cuh`."""
    return -(-k // 16) * 4 + 4


def place(math, r, c, along):
    """Where a thread keeps the results of its r-th row from its c-th group of columns on."""
    if math == "Fp32":
        return (r * along + c) * 4
    return (r // 2 * along + c) * 4 + r % 2 * 2


def _within(ranges, which, m):
    high = ranges[which][0]
    low = ranges[which - 1][0] if which else 0
    return m > low if high is None else tirx.all(m > low, m <= high)


@inlined
def _product(layer, variant, m, block_row, block_column, own, shared, acc):
    """acc = the results of this thread."""
    T.evaluate(
        T.call_extern(
            "void",
            variant.call(layer.arguments),
            acc.data,
            shared.data,
            own.x.data,
            own.weights.data,
            T.Cast("int32", m),
            T.Cast("int32", block_row * variant.rows),
            T.Cast("int32", block_column * variant.columns),
        )
    )


@inlined
def _tiles(layer, tile, m, own, given, y):
    across = T.meta_var(-(-layer.n // tile.columns))
    wide = T.meta_var(4 if layer.math == "Fp32" else 2)  # neighbouring columns of a thread
    lanes = T.meta_var(8 if layer.math == "Fp32" else 4)  # along a row
    vector = T.meta_var(gcd(wide, layer.n))
    down = T.meta_var(tile.warp_rows * lanes // 32)
    along = T.meta_var(tile.warp_columns // (wide * lanes))
    for block in T.thread_binding((m + tile.rows - 1) // tile.rows * across, thread="blockIdx.x"):
        for thread in T.thread_binding(tile.threads, thread="threadIdx.x"):
            T.attr(thread, LEAST_BLOCKS, tile.blocks(layer.math))
            shared = T.alloc_buffer((tile.shared_words(layer.math),), "float32", scope="shared.dyn")
            acc = T.alloc_buffer((down * along * wide,), layer.sums, scope="local")
            _product(layer, tile, m, block // across, block % across, own, shared, acc)
            warp = T.meta_var(thread // 32)
            warps = T.meta_var(tile.columns // tile.warp_columns)
            row = T.meta_var(
                block // across * tile.rows + warp // warps * tile.warp_rows + thread % 32 // lanes
            )
            column = T.meta_var(
                block % across * tile.columns
                + warp % warps * tile.warp_columns
                + thread % lanes * wide
            )
            if tile.slices == 1 or thread < tile.threads // tile.slices:
                for r in T.unroll(down, annotations=AS_LOOP):
                    for c in T.unroll(along, annotations=AS_LOOP):
                        for part in T.unroll(wide // vector, annotations=AS_LOOP):
                            at = T.meta_var(place(layer.math, r, c, along) + part * vector)
                            i = T.meta_var(row + r * (32 // lanes))
                            j = T.meta_var(column + c * wide * lanes + part * vector)
                            if i < m and j < layer.n:
                                for v in T.vectorized(vector):
                                    y[i, j + v] = layer.stored(acc[at + v], own, given, i, j + v)


@inlined
def _few(layer, few, m, own, given, y):
    across = T.meta_var(-(-layer.n // few.columns))
    each = T.meta_var(-(-few.rows * few.columns // few.threads))
    for block in T.thread_binding((m + few.rows - 1) // few.rows * across, thread="blockIdx.x"):
        for thread in T.thread_binding(few.threads, thread="threadIdx.x"):
            shared = T.alloc_buffer((few.shared_words(layer.math),), "float32", scope="shared.dyn")
            acc = T.alloc_buffer((each,), layer.sums, scope="local")
            _product(layer, few, m, block // across, block % across, own, shared, acc)
            for e in T.unroll(each):
                element = T.meta_var(thread + e * few.threads)
                i = T.meta_var(block // across * few.rows + element // few.columns)
                j = T.meta_var(block % across * few.columns + element % few.columns)
                if element < few.rows * few.columns and i < m and j < layer.n:
                    y[i, j] = layer.stored(acc[e], own, given, i, j)


@inlined
def _dots(layer, dots, m, own, given, y):
    function = T.meta_var(f"graphopt::row_dots<{layer.arguments}>")
    for block in T.thread_binding((m + dots.rows - 1) // dots.rows, thread="blockIdx.x"):
        for thread in T.thread_binding(32 * dots.rows, thread="threadIdx.x"):
            acc = T.alloc_buffer((1,), layer.sums, scope="local")
            first = T.meta_var(block * dots.rows)
            sizes = T.meta_var((T.Cast("int32", m), T.Cast("int32", first)))
            places = T.meta_var((acc.data, own.x.data, own.weights.data))
            T.evaluate(T.call_extern("void", function, *places, *sizes))
            i = T.meta_var(first + thread // 32)
            j = T.meta_var(thread % 32)
            if i < m and j < layer.n:
                y[i, j] = layer.stored(acc[0], own, given, i, j)


_launches = {Tile: _tiles, FewRows: _few, RowDots: _dots}


@inlined
def _range(layer, ranges, which, m, own, given, y):
    """The launch for one of the ranges of rows, if `m` is in that."""
    if which < len(ranges):  # noqa: SIM102  (the other one is part of the kernel)
        if _within(ranges, which, m):
            _launches[type(ranges[which][1])](layer, ranges[which][1], m, own, given, y)


@cache
def gemm(
    k: int,
    n: int,
    math: Math,
    ranges: tuple[Range, ...],
    epilogue: Epilogue = PLAIN,
    rounding: Quantization | None = None,
) -> PrimFunc:
    """Kernel (x[M, k], weights as `pack_weights` has them, bias[n], columns[…, n], *operands)
    -> y[M, n].

    y = x @ weights + bias after the epilogue, M symbolic. Infinite elements of `x` become NaN where
    products are formed from parts ("Tf32x3"). For "Int8" weights are as `pack_codes` has them,
    float32 scale[n] stands before the bias, and y = scale * (codes of x @ weights) + bias after the
    epilogue. For "Codes" x is uint32[M, …] as `row_codes` makes it, and `scale` another factor.

    Args:
        ranges: what is launched for how many rows, the last one for any number.
        rounding: how "Int8" rounds x; a NaN becomes some code.

    Raises:
        ValueError: there are too many ranges, or the last has a limit.
    """
    if (math == "Int8") != (rounding is not None):
        raise ValueError("8 bits go with a rounding")
    unlimited = [limit is None for limit, _ in ranges]
    if not 1 <= len(ranges) <= MAX_RANGES or unlimited != [*[False] * (len(ranges) - 1), True]:
        raise ValueError(f"a kernel has 1 to {MAX_RANGES} ranges of rows, the last has no limit")
    layer = _Layer(k, n, math, epilogue, rounding)
    constants = max(1, epilogue.activation.columns)
    of_bytes = math in ("Int8", "Codes")
    starts = 1 if of_bytes else 0
    width, dtype = (coded_width(k), "uint32") if math == "Codes" else (k, "float32")
    words, pitch = -(-k // packed_values(math)), -(-n // 4) * 4

    @script.prim_func(private=True, s_tir=True)
    def gemm(
        x: T.handle,
        weights: T.handle,
        scale: T.handle,
        bias: T.handle,
        c: T.handle,
        p: T.handle,
        q: T.handle,
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        m, fewer, least = T.int64(), T.int64(), T.int64()
        left = T.match_buffer(x, (m, width), dtype)
        right = T.match_buffer(weights, (words + starts, pitch), "uint32")
        factor = T.match_buffer(scale, (n,), "float32")
        start = T.match_buffer(bias, (n,), "float32")
        columns = T.match_buffer(c, (constants, n), "float32")
        first = T.match_buffer(p, (epilogue.rows(0, m, fewer), n), "float32")
        second = T.match_buffer(q, (epilogue.rows(1, m, least), n), "float32")
        given = T.meta_var((columns, first, second))
        own = T.meta_var(_Operands(left, right, factor, start))
        out = T.match_buffer(y, (m, n), "float32")
        _range(layer, ranges, 0, m, own, given, out)
        _range(layer, ranges, 1, m, own, given, out)
        _range(layer, ranges, 2, m, own, given, out)
        _range(layer, ranges, 3, m, own, given, out)
        _range(layer, ranges, 4, m, own, given, out)

    return without_parameters(gemm, *() if of_bytes else ("factor",), *epilogue.unused)
