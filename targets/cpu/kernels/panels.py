"""What packed products have in common: panels of columns, blocks of rows over them, the store."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm.script import tirx as T

from graphopt.targets.kernels.epilogue import Epilogue
from graphopt.targets.kernels.script import inlined

MAX_ROWS = 16
_SUMS = 8
"""Vectors of sums that keep two units for fused multiply-adds of 4 cycles busy."""
SHORT = 256
"""Products in a sum, of which a panel of 16 columns stays in the nearest cache."""
PANEL_BYTES = 512 << 10
"""Of a panel at most where vectors have 16 lanes: two share a second-level cache of 1 MiB."""
_TIME_ALONE = {8: 1.5, 16: 1.15}
"""What a vector takes that is the only one of its panel, by its lanes, to one among others: with 16
lanes there is a load for each product, and two units wait for loads; one row's sum waits for itself
(1.4), many rows take 1.1."""
WIDEST_FAR = 3
"""Vectors of a panel at most where weights come from memory: blocks then have 8 rows or more."""
_HEIGHTS = {True: (8, 6, 4, 3, 2, 1), False: (8, 4, 2, 1)}
"""Heights of blocks by whether vectors have 16 lanes."""
Emitted = Callable[..., None]


@dataclass(frozen=True)
class GemmParams:
    """How the kernel uses registers.

    Attributes:
        lanes: elements (float32, or float64) in one vector register.
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
        """Block heights that make up any number of rows: `rows`, then some below.

        Each block reads its panel again, so where weights wait for memory (`panel_ahead`), six or
        three rows are to be one block and not two.
        """
        return [self.rows, *(height for height in _HEIGHTS[self.lanes == 16] if height < self.rows)]

    def side(self, height: int) -> int:
        """Panels that a block of `height` rows spans: the sums of one alone may be too few.

        Of 16 lanes, one row's four sums took 1.7 times as long out of the second-level cache.
        """
        return max(1, _SUMS // (height * self.vectors)) if self.lanes in (8, 16) else 1


def registers(lanes: int) -> tuple[int, int]:
    """How many vector registers there are, and how many of them a panel is wide at most."""
    return {16: (32, 6), 8: (16, 3)}.get(lanes, (16, 2))


def default_params(n: int, lanes: int, k: int = SHORT + 1, far: bool = False) -> GemmParams:
    """Parameters for `n` columns: as little padding as possible, then as many accumulators.

    Sums over at most SHORT products are so soon done that no more are begun than units need.
    Weights that are `far` come from memory.
    """
    vectors = vectors_across(n, lanes, k, WIDEST_FAR if far else None)
    rows = min(12, rows_beside(vectors, lanes))
    if lanes == 8 and k <= SHORT:
        rows = min(rows, max(4, _SUMS // vectors))
    return GemmParams(lanes, vectors, rows)


def vectors_across(n: int, lanes: int, k: int = 1, most: int | None = None) -> int:
    """Vectors of a panel for `n` columns: as little padding as possible, then as many of them.

    There are `most` at most, if that is given and fewer than registers allow.
    """
    _, widest = registers(lanes)
    widest = min(widest, most or widest)
    if lanes == 16:
        widest = max(1, min(widest, PANEL_BYTES // (4 * lanes * k)))

    def time(vectors: int) -> float:
        alone = _TIME_ALONE.get(lanes, 1.0) if vectors == 1 else 1.0
        return -(-n // (lanes * vectors)) * vectors * alone

    return min(range(1, widest + 1), key=lambda v: (time(v), -v))


def rows_beside(vectors: int, lanes: int) -> int:
    """Rows of a block as registers allow beside `vectors`, one of weights and one of data."""
    available, _ = registers(lanes)
    return 6 if narrow(vectors, lanes) else (available - vectors - 1) // vectors


def narrow(vectors: int, lanes: int) -> bool:
    """True for panels of one vector of 8 lanes, which take 1.5 times as long a vector as others.

    LLVM computes two steps of their short loop at a time, and with more than 6 rows it spills.
    """
    return vectors == 1 and lanes == 8


def pack_weights(weights: np.ndarray, params: GemmParams) -> np.ndarray:
    """float32, float64, bfloat16 or int8 [K, N] as [panels, K, width]; columns beyond N are zero.

    bfloat16 as its bits, uint16: NumPy has none that DLPack could hand over.
    """
    k, n = weights.shape
    panels = params.panels(n)
    dtype = weights.dtype if weights.dtype.name in ("int8", "bfloat16", "float64") else np.float32
    padded = np.zeros((k, panels * params.width), dtype)
    padded[:, :n] = weights
    packed = np.ascontiguousarray(padded.reshape(k, panels, -1).transpose(1, 0, 2))
    return packed.view(np.uint16) if packed.dtype.name == "bfloat16" else packed


def pack_bias(
    bias: np.ndarray | None, n: int, params: GemmParams, dtype: str = "float32"
) -> np.ndarray:
    """A row of N numbers (None for zeros) as `dtype`[panels * width]."""
    padded = np.zeros(params.panels(n) * params.width, dtype)
    if bias is not None:
        padded[:n] = bias
    return padded


def by_blocks(
    params: GemmParams, panels: int, block: Emitted, spans: bool | None = None
) -> Emitted:
    """For use in a kernel: `visit(tensors, rows)` calls `block` for all rows of all panels.

    Args:
        block: called with the tensors, the first row, the first panel, a height and how many panels
            it spans.
        spans: whether blocks of few rows span several panels; where None, those of 8 lanes do.
    """
    heights = params.blocks
    spanning = params.lanes == 8 if spans is None else spans
    group = min(params.side(1), panels) if spanning else 1

    def rest(rows, level):
        """Rows left over by the blocks before `level`."""
        for height in heights[:level]:
            rows = rows % height
        return rows

    @inlined
    def level(tensors, rows, panel, count, place):
        """The rows that blocks of one height take, for `count` panels."""
        if place < len(heights):
            height = T.meta_var(heights[place])
            side = T.meta_var(min(params.side(height), count))
            for i in range(rest(rows, place) // height):
                first = rows - rest(rows, place) + i * height
                for p in range(count // side):
                    block(tensors, first, panel + p * side, height, side)
                if count % side > 0:
                    block(tensors, first, panel + count - count % side, height, count % side)

    @inlined
    def levels(tensors, rows, panel, count):
        level(tensors, rows, panel, count, 0)
        level(tensors, rows, panel, count, 1)
        level(tensors, rows, panel, count, 2)
        level(tensors, rows, panel, count, 3)
        level(tensors, rows, panel, count, 4)
        level(tensors, rows, panel, count, 5)
        level(tensors, rows, panel, count, 6)

    @inlined
    def visit(tensors, rows):
        for i in range(panels // group):
            levels(tensors, rows, i * group, group)
        if panels % group > 0:
            levels(tensors, rows, panels - panels % group, panels % group)

    return visit


MAX_PARTS = 4


@dataclass(frozen=True)
class Columns:
    """Columns of a matrix: `width` of its `source` ones, from `start` on."""

    start: int
    width: int
    source: int


def whole_matrix(k: int) -> tuple[Columns, ...]:
    """The data of a layer that reads all columns of one matrix."""
    return (Columns(0, k, k),)


def adding_up(
    parts: Sequence[Columns],
    params: GemmParams,
    stored: str = "float32",
    meanwhile: Emitted | None = None,
) -> Emitted:
    """For use in a kernel: `add_up(x, w, b, acc, first, panel, height, across)`.

    acc[height, across, lanes], flat, becomes the bias plus `height` rows of the data from `first`
    on times `across` vectors of the packed weights from `panel` on, added up in the order of k.

    Args:
        parts: what the data are, side by side, in the matrices `x`; MAX_PARTS at most.
        stored: the dtype of the weights; sums start from 0 where it is int8.
        meanwhile: `add_up` takes one more argument, and calls this with that, the weights, the
            panel after those that it reads, and each k.
    """
    lanes, vectors = params.lanes, params.vectors
    before = [sum(part.width for part in parts[:at]) for at in range(len(parts))]

    def as_float(vector):
        if stored == "bfloat16":
            word = T.Cast(f"uint32x{lanes}", vector) << T.Broadcast(T.uint32(16), lanes)
            return T.reinterpret(f"float32x{lanes}", word)
        return vector if stored in ("float32", "float64") else T.Cast(f"float32x{lanes}", vector)

    @inlined
    def step(x, w, acc, first, panel, height, across, at, kk):
        for r in T.unroll(height):
            for v in T.unroll(across):
                place = T.meta_var(T.ramp((r * across + v) * lanes, 1, lanes))
                lane = T.meta_var(T.ramp(v % vectors * lanes, 1, lanes))
                acc[place] = acc[place] + T.Broadcast(
                    x[at][first + r, parts[at].start + kk], lanes
                ) * as_float(w[panel + v // vectors, before[at] + kk, lane])

    @inlined
    def of_part(x, w, acc, first, panel, height, across, at, more):
        if at < len(parts):
            for kk in range(parts[at].width):
                if meanwhile is not None:
                    meanwhile(more, w, panel + across // vectors, before[at] + kk)
                step(x, w, acc, first, panel, height, across, at, kk)

    @inlined
    def add_up(x, w, b, acc, first, panel, height, across, more=None):
        for r in T.unroll(height):
            for v in T.unroll(across):
                acc[T.ramp((r * across + v) * lanes, 1, lanes)] = (
                    T.Broadcast(T.float32(0), lanes)
                    if stored == "int8"
                    else b[T.ramp((panel * vectors + v) * lanes, 1, lanes)]
                )
        of_part(x, w, acc, first, panel, height, across, 0, more)
        of_part(x, w, acc, first, panel, height, across, 1, more)
        of_part(x, w, acc, first, panel, height, across, 2, more)
        of_part(x, w, acc, first, panel, height, across, 3, more)

    return add_up


def pack_columns(constants: np.ndarray, params: GemmParams) -> np.ndarray:
    """float32[count, N] as float32[count, panels * width]; zero beyond N."""
    count, n = constants.shape
    padded = np.zeros((count, params.panels(n) * params.width), np.float32)
    padded[:, :n] = constants
    return padded


def applying(n: int, lanes: int, epilogue: Epilogue) -> Emitted:
    """For use in a kernel: `apply(values, at, row, column, given)` is the epilogue, in place.

    Of values[at:at + lanes], which are those of `row` from `column` on, with what is given for it.
    What lies beyond column `n` becomes some number.
    """
    rest = n % lanes  # columns of the last vector, if that is not whole

    @inlined
    def apply(values, at, row, column, given):
        if column + lanes <= n:
            for lane in T.vectorized(lanes):
                values[at + lane] = epilogue(values[at + lane], given, row, column + lane)
        elif column < n:
            if epilogue.before > 0:
                for lane in range(rest):
                    values[at + lane] = epilogue.begin(values[at + lane], given, row, column + lane)
            for lane in T.vectorized(lanes):
                values[at + lane] = epilogue.activate(values[at + lane], given, column + lane)
            if epilogue.before < len(epilogue.steps):
                for lane in range(rest):
                    values[at + lane] = epilogue.finish(
                        values[at + lane], given, row, column + lane
                    )

    return apply


def storing(n: int, lanes: int, epilogue: Epilogue) -> Emitted:
    """For use in a kernel: `store(y, row, column, values, at, given)` writes one vector.

    y[row, column:column + lanes] = values[at:at + lanes] after the epilogue with what is given for
    it; what lies beyond column `n` is left out.
    """
    apply = applying(n, lanes, epilogue)

    @inlined
    def store(y, row, column, values, at, given):
        if column + lanes <= n:
            for lane in T.vectorized(lanes):
                y[row, column + lane] = epilogue(values[at + lane], given, row, column + lane)
        elif column < n:
            apply(values, at, row, column, given)
            for lane in range(n % lanes):
                y[row, column + lane] = values[at + lane]

    return store
