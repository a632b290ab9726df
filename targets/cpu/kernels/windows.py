"""Products of the windows of a sequence with packed weights: convolutions along one axis.

A window is `kernel` positions of a sample, and with their elements side by side the windows of a
sample are the rows of a matrix whose neighbours overlap: where positions follow one another, each
row starts `width` elements after the one before. So this is `gemm` on rows that are read where the
sequence lies, and none is copied. (The implicit form of what Chellapilla, Puri and Simard unroll in
"High Performance Convolutional Neural Networks for Document Processing", 2006.)

Few columns would leave most lanes of a vector empty. Then a vector holds `fold` products of each
column, of as many neighbouring elements of a window, and these are added up at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.panels import (
    PANEL_BYTES,
    Emitted,
    GemmParams,
    default_params,
    pack_bias,
    pack_weights,
    storing,
)
from graphopt.targets.kernels import script
from graphopt.targets.kernels.epilogue import PLAIN, Epilogue
from graphopt.targets.kernels.parameters import without_parameters
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes


@dataclass(frozen=True)
class Sliding:
    """Windows that slide by one position along samples [length, width].

    Window `o` holds the positions o + t * dilation for t < kernel.
    """

    length: int
    width: int
    kernel: int
    dilation: int = 1

    @property
    def count(self) -> int:
        """Windows of a sample."""
        return self.length - (self.kernel - 1) * self.dilation

    @property
    def elements(self) -> int:
        """Elements of a window."""
        return self.kernel * self.width

    @property
    def runs(self) -> tuple[int, int]:
        """How many runs of neighbouring elements a window is, and how long each is."""
        return (1, self.elements) if self.dilation == 1 else (self.kernel, self.width)


@dataclass(frozen=True)
class WindowParams:
    """How the kernel uses registers.

    Attributes:
        gemm: lanes, vectors across a panel of `fold` times as many columns, and most rows.
        fold: neighbouring elements of a window that a vector multiplies at once: 1, 2 or 4.
    """

    gemm: GemmParams
    fold: int

    @property
    def lanes(self) -> int:
        """Columns in a vector."""
        return self.gemm.lanes // self.fold


def window_params(sliding: Sliding, n: int, lanes: int) -> WindowParams:
    """Parameters for `n` columns: no more than half of the lanes empty, if windows allow that."""
    fold, (_, run) = 1, sliding.runs
    while fold < 4 and 2 * fold * n <= lanes and run % (2 * fold) == 0:
        fold *= 2
    return WindowParams(default_params(n * fold, lanes, sliding.elements // fold), fold)


def pack_window_weights(weights: np.ndarray, params: WindowParams) -> np.ndarray:
    """float32[K, N] as [panels, K / fold, panel width]; a column's `fold` rows side by side."""
    (k, n), fold = weights.shape, params.fold
    beside = weights.reshape(k // fold, fold, n).transpose(0, 2, 1).reshape(k // fold, n * fold)
    return pack_weights(beside, params.gemm)


def pack_window_bias(bias: np.ndarray | None, n: int, params: WindowParams) -> np.ndarray:
    """float32[N] (None for zeros) as the vectors that sums start from."""
    start = np.zeros((n, params.fold), np.float32)
    if bias is not None:
        start[:, 0] = bias
    return pack_bias(start.reshape(-1), n * params.fold, params.gemm)


@cache
def window_products(
    sliding: Sliding, n: int, params: WindowParams, epilogue: Epilogue = PLAIN
) -> PrimFunc:
    """Kernel (x[samples, length, width], weights, bias, *operands) -> y[samples * count, n].

    Row `s * count + o` is window `o` of sample `s` times the weights, plus the bias, after the
    epilogue, whose activation has no constants per column; all is float32 and `samples` symbolic.
    Sums run over k in order, every `fold`-th element apart from the others, in fused multiply-adds
    where the target has them, whatever `samples` is. NaN stays NaN.
    """
    gemm, fold, count = params.gemm, params.fold, sliding.count
    panels, align = gemm.panels(n * fold), element_bytes("float32")
    steps, together = sliding.elements // fold, max(1, gemm.rows // count)
    near = 4 * panels * steps * gemm.width <= PANEL_BYTES
    block = _block(sliding, n, params, epilogue)
    heights = _heights(count, gemm.rows)

    @inlined
    def windows(tensors, sample, panel):
        """All windows of one sample."""
        for i in range(len(heights) - 1):
            block(tensors, sample, i * heights[0], panel, heights[0])
        block(tensors, sample, count - heights[-1], panel, heights[-1])

    @inlined
    def samples(tensors, number, panel):
        if together > 1:
            for i in range(number // together):
                block(tensors, i * together, 0, panel, together * count)
            for i in range(number % together):
                windows(tensors, number - 1 - i, panel)
        else:
            for i in range(number):
                windows(tensors, i, panel)

    @inlined
    def panels_of(tensors, number):
        """Weights that the second-level cache keeps go over a sample one after the other."""
        if near and together == 1:
            for i, panel in T.grid(number, panels):
                windows(tensors, i, panel)
        else:
            for panel in range(panels):
                samples(tensors, number, panel)

    @script.prim_func(private=True, s_tir=True)
    def window_products(
        x: T.handle, weights: T.handle, bias: T.handle, p: T.handle, q: T.handle, y: T.handle
    ):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        number, fewer, least = T.int64(), T.int64(), T.int64()
        m = T.meta_var(number * count)
        size = T.meta_var(sliding.length * sliding.width)
        left = T.match_buffer(x, (number, size), "float32", align=align)
        right = T.match_buffer(weights, (panels, steps, gemm.width), "float32", align=align)
        start = T.match_buffer(bias, (panels * gemm.width,), "float32", align=align)
        first = T.match_buffer(p, (epilogue.rows(0, m, fewer), n), "float32", align=align)
        second = T.match_buffer(q, (epilogue.rows(1, m, least), n), "float32", align=align)
        out = T.match_buffer(y, (m, n), "float32", align=align)
        panels_of((left, right, start, out, (None, first, second)), number)

    unused = [name for name in epilogue.unused if name != "columns"]
    return without_parameters(window_products, *unused)


def _heights(count: int, most: int) -> list[int]:
    """Heights of blocks of `most` rows at most that make up `count`, as even as can be."""
    blocks = -(-count // most)
    height = -(-count // blocks)
    return [height] * (blocks - 1) + [count - height * (blocks - 1)]


def _block(sliding: Sliding, n: int, params: WindowParams, epilogue: Epilogue) -> Emitted:
    """For use in a kernel: `block(tensors, sample, first, panel, height)` computes some windows.

    They begin with window `first` of a sample, and go on in the samples after it.
    """
    lanes, vectors, fold = params.gemm.lanes, params.gemm.vectors, params.fold
    runs, run = sliding.runs
    store = storing(n, params.lanes, epilogue)

    def element(x: Any, sample: Any, window: Any, t: Any, at: Any) -> Any:
        """A vector of the `fold` elements of a window that begin at `at` of run `t`."""
        within = (window % sliding.count + t * sliding.dilation) * sliding.width + at
        row = sample + window // sliding.count
        if fold == 1:
            return T.Broadcast(x[row, within], lanes)
        copies = [x[row, T.ramp(within, 1, fold)]] * (lanes // fold)
        return tirx.Shuffle(copies, list(range(lanes)))

    def halved(vector: Any, width: int) -> Any:
        """The sums of neighbouring lanes."""
        even = list(range(0, width, 2))
        odd = list(range(1, width, 2))
        return tirx.Shuffle([vector], even) + tirx.Shuffle([vector], odd)

    @inlined
    def add_up(x, w, acc, sample, first, panel, height):
        for t in range(runs):
            for step in range(run // fold):
                for r in T.unroll(height):
                    for v in T.unroll(vectors):
                        place = T.meta_var(T.ramp((r * vectors + v) * lanes, 1, lanes))
                        acc[place] = (
                            acc[place]
                            + element(x, sample, first + r, t, step * fold)
                            * w[panel, t * (run // fold) + step, T.ramp(v * lanes, 1, lanes)]
                        )

    @inlined
    def join(acc, at):
        """The columns of a vector one after the other."""
        if fold >= 2:
            acc[T.ramp(at, 1, lanes // 2)] = halved(acc[T.ramp(at, 1, lanes)], lanes)
        if fold == 4:
            acc[T.ramp(at, 1, lanes // 4)] = halved(acc[T.ramp(at, 1, lanes // 2)], lanes // 2)

    @inlined
    def block(tensors, sample, first, panel, height):
        x, w, b, y, given = T.meta_var(tensors)
        acc = T.alloc_buffer((height * vectors * lanes,), "float32")
        for r in T.unroll(height):
            for v in T.unroll(vectors):
                acc[T.ramp((r * vectors + v) * lanes, 1, lanes)] = b[
                    T.ramp((panel * vectors + v) * lanes, 1, lanes)
                ]
        add_up(x, w, acc, sample, first, panel, height)
        for r in T.unroll(height):
            for v in T.unroll(vectors):
                join(acc, (r * vectors + v) * lanes)
                store(
                    y,
                    sample * sliding.count + first + r,
                    (panel * vectors + v) * params.lanes,
                    acc,
                    (r * vectors + v) * lanes,
                    given,
                )

    return block
