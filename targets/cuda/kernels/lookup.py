"""Rows of several tables, and values beside them, written side by side by one launch.

A block serves one part: blockIdx.y says which. Neighbouring threads read neighbouring pieces of a
row, 16 bytes each where widths allow, and each thread asks for its piece of `ROWS` rows before it
writes the first, which hides the time that memory takes to find rows at random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.ops.product_lookup import ENTRIES
from graphopt.targets.cuda.kernels.blocks import covering, launched
from graphopt.targets.kernels import bounds
from graphopt.targets.kernels.storage import element_bytes
from graphopt.targets.relax.primfunc import int64

THREADS = 256
ROWS = 4
PIECE = 16  # bytes


@dataclass(frozen=True)
class Part:
    """What fills some columns of each row of the result, the first of them being `place`.

    Attributes:
        source: a buffer: values [rows, width], a table [size, width], or codes of one.
        ids: which rows of the table, [rows, count]; None for values.
        scales: what codes are multiplied with, [size].
        books: what codes are found in, [count * ENTRIES, width]: the k-th code of a row is a row of
            the k-th book, and stands for `width` columns.
        extents: where the table holds several, the first row of each and its number of rows,
            [2, fields]; the ids name rows of one after the other, over and over.
        bits: of a code, if there are scales: 8, or 4 (two a byte, for two halves of the row).
        aligned: False if the source may begin anywhere, so that it is read element by element.
    """

    source: Any
    place: int
    ids: Any = None
    scales: Any = None
    books: Any = None
    extents: Any = None
    bits: int = 8
    aligned: bool = True

    @property
    def width(self) -> int:
        """Columns of one row, as read."""
        return int(self.source.shape[1]) * (1 if self.books is None else int(self.books.shape[1]))

    @property
    def dim(self) -> int:
        """Columns that one id fills."""
        return self.width * (2 if self.scales is not None and self.bits == 4 else 1)

    @property
    def count(self) -> int:
        """How many rows of the source make one part of the result."""
        return 1 if self.ids is None else int(self.ids.shape[1])

    def lanes(self, stride: int) -> int:
        """Elements that a thread moves at once into rows of `stride` elements."""
        written = "float32" if self.scales is not None else str(self.read.dtype)
        most = min(PIECE // element_bytes(written), 4)
        return gcd(most, int(self.read.shape[1]), self.place, stride) if self.aligned else 1

    @property
    def read(self) -> Any:
        """The buffer that the elements come from."""
        return self.source if self.books is None else self.books

    def elements(self, row: Any, column: Any, lanes: int) -> Any:
        """Those of a row from `column` on, as many as one piece has."""
        if self.books is None:
            return self.source[row, _run(column, lanes)]
        width = int(self.books.shape[1])
        entry = column // width * ENTRIES + self.source[row, column // width].astype("int64")
        return self.books[entry, _run(column % width, lanes)]


def _run(first: Any, lanes: int) -> Any:
    """The places of `lanes` elements that are moved at once, one vector.

    A vectorized loop says the same, but TVM asks all loops about each index, and a lookup has eight
    for each of its tables.
    """
    return first if lanes == 1 else tirx.Ramp(first, int64(1), lanes)


def _vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def lookup(parts: Sequence[Part], out: Any, oob: str) -> None:
    """The statements of the kernel: out[rows, stride] from its parts.

    No id is read outside its table: one that is outside reads the nearest row, or zeros if `oob`
    is "zero".
    """
    rows, stride = out.shape[0], int(out.shape[1])
    block_rows = [_pieces(part, stride).block_rows for part in parts]
    fewest = min(block_rows)
    slots = sum(part.count for part in parts)
    with (
        T.thread_binding(int64(0), int64(slots), thread="blockIdx.y") as slot,
        launched(covering(rows, fewest), THREADS) as (block, thread),
    ):
        firsts = [sum(part.count for part in parts[:k]) for k in range(len(parts))]

        def serve(k: int) -> None:
            # Parts of short rows have fewer blocks, and TVM launches one where there are no rows.
            with T.If(block * block_rows[k] < rows), T.Then():
                _serve(parts[k], slot - firsts[k], block, thread, out, oob)

        choose(slot, firsts, serve)


def choose(slot: Any, firsts: Sequence[int], serve: Callable[[int], None], low: int = 0) -> None:
    """`serve(k)` for the last k with firsts[k] <= slot, found by halving."""
    if len(firsts) == 1:
        serve(low)
        return
    middle = len(firsts) // 2
    with T.If(slot < firsts[middle]):
        with T.Then():
            choose(slot, firsts[:middle], serve, low)
        with T.Else():
            choose(slot, firsts[middle:], serve, low + middle)


@dataclass(frozen=True)
class _Pieces:
    """How the threads of a block share rows of `pieces` pieces of `lanes` elements each."""

    lanes: int
    pieces: int

    @property
    def side(self) -> int:
        """Threads that share a row."""
        return min(self.pieces, THREADS)

    @property
    def passes(self) -> int:
        """How often these go over it."""
        return -(-self.pieces // self.side)

    @property
    def step(self) -> int:
        """Rows that a block has in hand at once."""
        return THREADS // self.side

    @property
    def block_rows(self) -> int:
        """Rows that a block moves."""
        return self.step * ROWS


def _pieces(part: Part, stride: int) -> _Pieces:
    lanes = part.lanes(stride)
    return _Pieces(lanes, part.width // lanes)


def _serve(part: Part, k: Any, block: Any, thread: Any, out: Any, oob: str) -> None:
    """Move piece by piece what the rows of this block take from id `k` of a part."""
    shape = _pieces(part, int(out.shape[1]))
    rows = out.shape[0]
    first = T.bind(block * shape.block_rows + thread // shape.side)
    mine = thread % shape.side
    busy: list[Any] = [] if THREADS % shape.side == 0 else [thread < shape.side * shape.step]
    row = T.alloc_buffer([ROWS], "int64", scope="local")
    found = T.alloc_buffer([ROWS], "bool", scope="local")
    for r in range(ROWS):
        at = tirx.min(first + r * shape.step, rows - 1)
        _find(part, at, k, r, row, found, oob)
    for p in range(shape.passes):
        piece = mine + p * shape.side
        last = [] if (p + 1) * shape.side <= shape.pieces else [piece < shape.pieces]
        held = T.alloc_buffer([ROWS, shape.lanes], part.read.dtype, scope="local")
        scale = T.alloc_buffer([ROWS], "float32", scope="local")
        guard = [*busy, *last]

        def read(held: Any = held, scale: Any = scale, piece: Any = piece) -> None:
            for r in range(ROWS):
                values = part.elements(row[r], piece * shape.lanes, shape.lanes)
                T.buffer_store(held, values, [r, _run(int64(0), shape.lanes)])
                if part.scales is not None:
                    T.buffer_store(scale, part.scales[row[r]].astype("float32"), [r])

        _guarded(guard, read)
        for r in range(ROWS):
            at = first + r * shape.step

            def write(r: int = r, at: Any = at, held: Any = held, scale: Any = scale,
                      piece: Any = piece) -> None:  # fmt: skip
                _write(part, shape, out, at, k, piece, held, scale, found, r, oob)

            _guarded([*guard, at < rows], write)


def _guarded(conditions: Sequence[Any], body: Callable[[], None]) -> None:
    if not conditions:
        body()
        return
    with T.If(tirx.all(*conditions)), T.Then():
        body()


def _find(part: Part, at: Any, k: Any, r: int, row: Any, found: Any, oob: str) -> None:
    """row[r], found[r] = the row of the source that row `at` of the result takes, if any."""
    if part.ids is None:
        T.buffer_store(row, at, [r])
        return
    index = T.bind(part.ids[at, k].astype("int64"))
    start: Any = int64(0)
    size: Any = int64(int(part.source.shape[0]))
    if part.extents is not None:
        fields = int(part.extents.shape[1])
        field = k if part.count == fields else (at * part.count + k) % fields
        start, size = T.bind(part.extents[0, field]), T.bind(part.extents[1, field])
    inside = T.bind(tirx.max(tirx.min(index, size - 1), -size))
    T.buffer_store(row, start + tirx.Select(inside < 0, inside + size, inside), [r])
    if oob == "zero":
        T.buffer_store(found, bounds.is_valid(index, size), [r])


def _write(
    part: Part, shape: _Pieces, out: Any, at: Any, k: Any, piece: Any,
    held: Any, scale: Any, found: Any, r: int, oob: str,
) -> None:  # fmt: skip
    """Row `at` of the result gets a piece that `held` and `scale` hold for it."""
    column = part.place + k * part.dim + piece * shape.lanes
    dtype = str(out.dtype)
    own = held[r, _run(int64(0), shape.lanes)]

    def fill(shift: int, values: Any) -> None:
        T.buffer_store(out, values, [at, _run(column + shift, shape.lanes)])

    def store(shift: int, values: Any) -> None:
        if part.ids is None or oob != "zero":
            fill(shift, values)
            return
        with T.If(found[r]):
            with T.Then():
                fill(shift, values)
            with T.Else():
                fill(shift, tirx.const(0, _vector(dtype, shape.lanes)))

    floats, ints = (_vector(kind, shape.lanes) for kind in (dtype, "int32"))
    if part.scales is None:
        store(0, own if str(held.dtype) == dtype else own.astype(floats))
    elif part.bits == 8:
        store(0, own.astype(floats) * scale[r])
    else:
        codes = own.astype(ints)
        for half, four in enumerate([codes & 15, codes >> 4]):
            store(half * part.width, (four - 8).astype(floats) * scale[r])
