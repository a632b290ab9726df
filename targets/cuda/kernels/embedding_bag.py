"""Embedding bags on a GPU: neighbouring threads add up neighbouring pieces of the rows of a bag.

A warp reads whole lines, 16 bytes a thread where widths allow; the bags of all fields are pooled by
one launch. What counts, and how rows become one, is as on the CPU. No id is read outside its table:
one that is outside reads the nearest row, or zeros, as `Plan.pooling` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.targets.cuda.kernels.blocks import covering, launched
from graphopt.targets.cuda.kernels.lookup import PIECE, choose
from graphopt.targets.kernels.bounds import row_of
from graphopt.targets.kernels.pooling import Plan
from graphopt.targets.kernels.storage import element_bytes
from graphopt.targets.relax.primfunc import int64

THREADS = 256


@dataclass(frozen=True)
class Table:
    """Where rows come from.

    Attributes:
        source: a buffer [rows, width]: values, or codes.
        scales: what codes are multiplied with, [rows]; None for values.
        bits: of a code: 8, or 4 (two a byte, for two halves of the row).
    """

    source: Any
    scales: Any = None
    bits: int = 8

    @property
    def width(self) -> int:
        return int(self.source.shape[1])

    @property
    def halves(self) -> int:
        """How many elements of the row one element of the source holds."""
        return 2 if self.scales is not None and self.bits == 4 else 1


@dataclass(frozen=True)
class Field:
    """The bags of one column of the result.

    Attributes:
        ids: a buffer of all of them.
        bounds: where the ids of a bag begin and end among these, whatever the data says.
        size: how many rows its table has, known or not, and `start` which is the first.
        weights: a buffer like `ids`.
    """

    ids: Any
    bounds: Callable[[Any], tuple[Any, Any]]
    size: Any
    start: int = 0
    weights: Any = None

    def reads(self, plan: Plan, index: Any) -> Any:
        """Whether `index` reads a row and not zeros; None for always."""
        if plan.pooling.oob == "zero":
            return plan.is_valid(index, self.size)
        return None if isinstance(self.size, int) else self.size > 0


def pool(plan: Plan, table: Table, fields: Sequence[Field], out: Any) -> None:
    """The statements of the kernel: out[bags * len(fields), dim], the fields of a bag in turn."""
    lanes = gcd(min(PIECE // element_bytes(plan.accumulator), 4), table.width)
    pieces = table.width // lanes
    bags = out.shape[0] // len(fields) if len(fields) > 1 else out.shape[0]
    with (
        T.thread_binding(int64(0), int64(len(fields)), thread="blockIdx.y") as which,
        launched(covering(bags * pieces, THREADS), THREADS) as (block, thread),
    ):
        at = T.bind(block * THREADS + thread)
        with T.If(at < bags * pieces), T.Then():
            bag, piece = at // pieces, at % pieces

            def serve(k: int) -> None:
                row = bag * len(fields) + k
                _pool(plan, table, fields[k], out, bag, row, piece * lanes, lanes)

            choose(which, range(len(fields)), serve)


def _pool(
    plan: Plan, table: Table, field: Field, out: Any, bag: Any, row: Any, column: Any, lanes: int
) -> None:
    """out[row, column:] = the pieces from `column` on of the rows of a bag, pooled."""
    first, last = (T.bind(end) for end in field.bounds(bag))
    total = T.alloc_buffer([table.halves * lanes], plan.accumulator, scope="local")
    held = T.alloc_buffer([lanes], str(table.source.dtype), scope="local")
    count = T.alloc_buffer([1], "int64", scope="local")
    T.buffer_store(count, int64(0), [0])
    for j in range(table.halves * lanes):
        T.buffer_store(total, tirx.const(plan.nothing, plan.accumulator), [j])
    with T.serial(int64(0), last - first) as i:
        index = T.bind(field.ids[first + i].astype("int64"))

        def add_row() -> None:
            at = field.start + row_of(index, field.size, plan.pooling.oob)
            with T.vectorized(lanes) as j:
                T.buffer_store(held, table.source[at, column + j], [j])
            scale = None if table.scales is None else T.bind(table.scales[at].astype("float32"))
            weight = plan.weight(field.weights, bag, i, first + i)
            for j, value in enumerate(_values(table, held, scale, lanes)):
                T.buffer_store(total, plan.combined(total[j], value, weight), [j])

        def add_zeros() -> None:
            for j in range(table.halves * lanes):
                T.buffer_store(total, plan.combined(total[j], 0.0, 1.0), [j])

        with T.If(plan.counts(index)), T.Then():
            T.buffer_store(count, count[0] + 1, [0])
            found = field.reads(plan, index)
            if found is None:
                add_row()
            else:
                with T.If(found):
                    with T.Then():
                        add_row()
                    with T.Else():
                        add_zeros()
    results = T.alloc_buffer([lanes], str(out.dtype), scope="local")
    for half in range(table.halves):
        for j in range(lanes):
            T.buffer_store(results, plan.pooled(total[half * lanes + j], count[0]), [j])
        with T.vectorized(lanes) as j:
            T.buffer_store(out, results[j], [row, half * table.width + column + j])


def _values(table: Table, held: Any, scale: Any, lanes: int) -> list[Any]:
    """The elements that a piece of a row stands for."""
    if scale is None:
        return [held[j] for j in range(lanes)]
    codes = [held[j].astype("int32") for j in range(lanes)]
    if table.halves == 2:
        codes = [(code & 15) - 8 for code in codes] + [(code >> 4) - 8 for code in codes]
    return [code.astype("float32") * scale for code in codes]
