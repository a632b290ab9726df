"""The kernel of a LookupConcat: a loop over rows, each part writing its elements in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.ir.graph import Node, Value
from graphopt.ops.embedding_bag import EmbeddingBag
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.kernels.rows import CACHE_LINE, PREFETCH_BYTES, PREFETCH_DISTANCE
from graphopt.targets.cpu.kernels.tiles import Tiles
from graphopt.targets.cpu.lookup_parts import OP_TYPE, Part, Term, parts_of
from graphopt.targets.kernels import bounds
from graphopt.targets.kernels.pooling import Plan, Pooling
from graphopt.targets.kernels.storage import vector_lanes
from graphopt.targets.relax.loops import loops, require, store
from graphopt.targets.relax.lowering import Lowering, int64, lowers
from graphopt.targets.relax.ops.indexing import load
from graphopt.targets.relax.scalar import cast, const

_LANES = 16  # codes restored at once
_REGISTERS = 8  # vectors summed up at once; a wider row takes several passes over the ids
_COMBINED: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
}


@dataclass(frozen=True)
class _Operand:
    """A part with its buffers: those of each term, or the value that it copies."""

    part: Part
    given: list[list[Any]]

    @property
    def written_out(self) -> bool:
        """True if it has code for each column, not a loop."""
        terms = self.part.terms
        return terms[0].columns == 1 or any(term.by_column for term in terms)

    def lookups(self) -> Iterator[tuple[Term, list[Any], int]]:
        """The terms, their buffers and the column of what it looks up by written out code."""
        if self.part.terms and self.part.pool is None and self.written_out:
            for k in range(self.part.terms[0].columns):
                for term, given in zip(self.part.terms, self.given):
                    yield term, given, k


class Row(NamedTuple):
    """Row `i` of `count`, which becomes row `at` of `target`.

    What parts keep as codes goes to the same places of `codes`, the scale of each row to `scales`.
    """

    i: Any
    count: Any
    target: Any
    at: Any
    codes: Any = None
    scales: Any = None


@lowers(OP_TYPE, domain=DOMAIN)
def _lower_lookup_concat(lower: Lowering, node: Node) -> Any:
    rows, summed = lower.dim(node.attrs["rows"]), node.attrs.get("summed")
    parts = node.attrs["parts"]

    def body(*buffers: Any) -> None:
        *sources, target = buffers
        with T.serial(int64(rows)) as i:
            if summed is not None:
                with T.serial(summed) as j:
                    store(target, [i, j], const(0, "float32"))
            write_row(lower, parts, sources, Row(i, int64(rows), target, i), summed)

    width = sum(part.width for part in parts) if summed is None else summed
    arguments = arguments_of(lower, node)
    (joined,) = loops(lower, body, arguments, [([rows, width], "float32")])
    return lower.reshape(joined, lower.shape(node.output))


def arguments_of(lower: Lowering, node: Node) -> list[Any]:
    """The operands of the kernel for the parts of a node, in the order of the parts."""
    rows, found = lower.dim(node.attrs["rows"]), list[Any]()
    for part, inputs in parts_of(node):
        found += _arguments(lower, part, inputs, rows)
    return found


def write_row(
    lower: Lowering,
    parts: Sequence[Part],
    sources: Sequence[Any],
    row: Row,
    summed: int | None = None,
    ahead: int = PREFETCH_DISTANCE,
) -> None:
    """Write a row of all parts, one beside the other, or add up rows of `summed` elements.

    Args:
        sources: the buffers of `arguments_of`.
        ahead: rows of tables are asked for so many lookups before they are read.
    """
    operands = list(_operands(parts, iter(sources)))
    place, later = 0, _later(operands, ahead)
    for operand in operands:
        _write(lower, operand, later, row, place, summed)
        place += operand.part.width if summed is None else 0


def _arguments(lower: Lowering, part: Part, inputs: list[Value], rows: Any) -> Iterator[Any]:
    """The operands of the kernel for a part: tables as they are, all else with its rows."""
    remaining = iter(inputs)
    if not part.terms:
        yield lower.reshape(lower.expr(next(remaining)), [rows, part.source])
    for term in part.terms:
        for _ in range(term.tables):
            yield lower.moved(next(remaining))
        for width, shared in zip(term.widths, term.shared):
            yield lower.reshape(lower.expr(next(remaining)), [1 if shared else rows, width])


def _operands(parts: Sequence[Part], sources: Iterator[Any]) -> Iterator[_Operand]:
    """The parts with their buffers, which `sources` has in order."""
    for part in parts:
        counts = [term.tables + len(term.widths) for term in part.terms] or [1]
        yield _Operand(part, [[next(sources) for _ in range(count)] for count in counts])


_Later = Iterator[tuple[Term, list[Any], int, int]]


def _later(operands: Sequence[_Operand], ahead: int) -> _Later:
    """For each lookup in order, if written out, the one that is `ahead` later.

    That is its term, the buffers of this, its column, and how many rows later.
    """
    order = [lookup for operand in operands for lookup in operand.lookups()]
    for place in range(len(order)):
        rows, at = divmod(place + ahead, len(order))
        yield *order[at], rows


def _write(
    lower: Lowering,
    operand: _Operand,
    later: _Later,
    row: Row,
    place: int,
    summed: int | None,
) -> None:
    """The row from `place` on = the part, or += each of its rows of `summed` elements."""
    add = None if summed is None else _COMBINED["add"]
    part, given = operand.part, operand.given
    if not part.terms:
        width = part.width if summed is None else summed
        for first in range(0, part.width, width):
            _copy(row, place, given[0][0], row.i, width, None, add, part.start + first)
        return
    columns = part.terms[0].columns
    if part.pool is not None:
        _pool(lower, part.terms[0], part.pool, given[0], row, place, add)
    elif operand.written_out:
        for k in range(columns):
            _look_up(lower, operand, later, row, place, k, add)
    else:
        with T.serial(columns) as k:
            looped = (
                (*term, k, -(-PREFETCH_DISTANCE // columns)) for term in zip(part.terms, given)
            )
            _look_up(lower, operand, looped, row, place, k, add)


def _look_up(
    lower: Lowering,
    operand: _Operand,
    later: _Later,
    row: Row,
    place: int,
    k: Any,
    combine: Any,
) -> None:
    """The row from place + k * dim on = what its id k names, combined with the others.

    With `combine` from the start, all rows are combined at one place.
    """
    apart = combine is None
    for term, given in zip(operand.part.terms, operand.given):
        column = place + k * term.dim if apart else place
        asked, buffers, its, rows = next(later)
        _prefetch(asked, buffers, its, T.min(row.i + rows, row.count - 1))
        _look_up_term(lower, term, given, row, column, k, combine, operand.part.kept)
        combine = _COMBINED.get(operand.part.combined, combine)


def _look_up_term(
    lower: Lowering,
    term: Term,
    given: list[Any],
    row: Row,
    place: Any,
    k: Any,
    combine: Any,
    kept: bool,
) -> None:
    start, size = _extent(term, given, k)
    at = T.bind(_id(term, given, row.i, k))
    if lower.oob != "zero":
        require(bounds.is_allowed(at, size, lower.oob), term.complaint)
    valid = bounds.is_valid(at, size) if lower.oob == "zero" else None
    found = start + bounds.row_of(at, size, lower.oob)
    if term.bits > 8:
        _copy(row, place, given[0], found, term.dim, valid, combine)
    else:
        scale = T.bind(load(given[1], [found], valid).astype("float32"))
        if kept:
            store(row.scales, [place // term.dim], scale)
            with T.vectorized(term.dim) as lane:
                store(row.codes, [place + lane], load(given[0], [found, lane], valid))
            return
        _restore(row, place, given[0], scale, found, term.bits, valid, combine)


def _extent(term: Term, given: list[Any], k: Any) -> tuple[int, int]:
    """Where the rows begin that ids of column k name, and how many there are."""
    if term.extents is None:
        return 0, int(given[0].shape[0])
    return term.extents.starts[k], term.extents.rows[k]


def _id(term: Term, given: list[Any], i: Any, k: Any) -> Any:
    """Id k of row i, an int64 expression."""

    def read(source: int, row: Any, column: Any) -> Any:
        return given[term.tables + source][0 if term.shared[source] else row, column]

    return term.ids.at(read, i, k).astype("int64")


def _prefetch(term: Term, given: list[Any], k: Any, i: Any) -> None:
    """Ask for the row that id k of row i names; any id is harmless here."""
    start, size = _extent(term, given, k)
    element = max(8, term.bits) // 8
    rows, width = (int(extent) for extent in given[0].shape)
    if rows * width * element < PREFETCH_BYTES:
        return
    ahead = T.bind(_id(term, given, i, k))
    row = start + T.max(T.min(ahead, size - 1), T.int64(0))
    for table, wide in zip(given[: term.tables], (width, 1)):
        for first in range(0, wide, CACHE_LINE // element):
            T.evaluate(
                tirx.call_llvm_intrin(
                    "void",
                    "llvm.prefetch",
                    table.access_ptr("r", offset=row * wide + first),
                    T.int32(0),  # for reading
                    T.int32(3),  # into every level
                    T.int32(1),  # of the data cache
                )
            )


def _pool(
    lower: Lowering,
    term: Term,
    bag: EmbeddingBag,
    given: list[Any],
    row: Row,
    place: int,
    combine: Any,
) -> None:
    """The row from `place` on = the rows that its ids name, as one."""
    rows, length = int(given[0].shape[0]), term.columns
    pooling = Pooling(
        bag.mode, False, bag.padding_idx, bag.empty, bag.by_id, lower.oob, term.complaint
    )
    plan = Plan(rows, term.dim, "float32", "int64", pooling)
    tiles = Tiles(term.dim, vector_lanes("float32"), _REGISTERS)
    total = T.alloc_buffer((tiles.vectors, tiles.lanes), "float32", scope="local")
    count = T.alloc_buffer((1,), "int64", scope="local")

    def vectors(change: Callable[[Any, Any, Any], None], part: Any) -> None:
        with T.unroll(tiles.vectors) as v, T.vectorized(tiles.lanes) as lane:
            change(v, lane, tiles.column(part, v) + lane)

    def add(found: Any, valid: Any) -> Callable[[Any, Any, Any], None]:
        def change(v: Any, lane: Any, column: Any) -> None:
            element = _widened(load(given[0], [found, column], valid), given[0].dtype)
            store(total, [v, lane], plan.combined(total[v, lane], element, None))

        return change

    def start(v: Any, lane: Any, column: Any) -> None:
        store(total, [v, lane], const(plan.nothing, "float32"))

    def finish(v: Any, lane: Any, column: Any) -> None:
        pooled = plan.pooled(total[v, lane], count[0])
        if term.bits == 16:  # the model stores it so
            half = "bfloat16" if str(given[0].dtype) == "uint16" else "float16"
            pooled = cast(pooled, half).astype("float32")
        _put(row, place + column, pooled, combine)

    with T.serial(tiles.count) as part:
        vectors(start, part)
        store(count, [0], int64(0))
        with T.serial(length) as k:
            ahead = k + PREFETCH_DISTANCE
            _prefetch(term, given, T.min(ahead, length - 1), row.i)
            at = T.bind(_id(term, given, row.i, k))
            if lower.oob != "zero":
                require(bounds.is_allowed(at, rows, lower.oob), term.complaint)
            valid = bounds.is_valid(at, rows) if lower.oob == "zero" else None
            with T.If(plan.counts(at)), T.Then():
                store(count, [0], count[0] + 1)
                vectors(add(bounds.row_of(at, rows, lower.oob), valid), part)
        vectors(finish, part)


def _put(row: Row, column: Any, value: Any, combine: Any) -> None:
    if combine is not None:
        value = combine(row.target[row.at, column], value)
    store(row.target, [row.at, column], value)


def _copy(
    row: Row,
    place: Any,
    source: Any,
    found: Any,
    width: int,
    valid: Any,
    combine: Any,
    start: int = 0,
) -> None:
    with T.serial(width) as j:
        element = load(source, [found, start + j], valid)
        _put(row, place + j, _widened(element, source.dtype), combine)


def _widened(element: Any, dtype: Any) -> Any:
    """A float as float32; those of bfloat16 are given as their bits, uint16."""
    if str(dtype) != "uint16":
        return element.astype("float32")
    return tirx.reinterpret("float32", element.astype("uint32") << const(16, "uint32"))


def _restore(
    row: Row,
    place: Any,
    codes: Any,
    scale: Any,
    found: Any,
    bits: int,
    valid: Any,
    combine: Any,
) -> None:
    """The row from `place` on = a row of codes times `scale`."""
    width = int(codes.shape[1])
    for start in range(0, width, _LANES):
        with T.vectorized(min(_LANES, width - start)) as lane:
            code, j = load(codes, [found, start + lane], valid), place + start + lane
            if bits == 8:
                _put(row, j, code.astype("float32") * scale, combine)
            else:
                byte = code.astype("int32")
                _put(row, j, ((byte & 15) - 8).astype("float32") * scale, combine)
                high = ((byte >> 4) - 8).astype("float32") * scale
                _put(row, width + j, high, combine)
