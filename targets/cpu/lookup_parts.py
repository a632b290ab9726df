"""What a LookupConcat is made of: the operands of a concatenation, those that are looked up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from graphopt.analysis.cost import Cost, cost_rule
from graphopt.analysis.lookups import Lookup, bytes_moved, lookup_rule
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.ops.embedding_bag import EmbeddingBag
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.id_arithmetic import Expression, Given, givens

OP_TYPE = "LookupConcat"


class Extents(NamedTuple):
    """Where in a table that holds one for each column these begin, and how many rows each has."""

    starts: tuple[int, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Term:
    """Rows of a table.

    Attributes:
        bits: of an element; those of 4 and 8 bits are codes, with a scale per row, and others are
            floats.
        dim: elements of a row.
        columns: ids in a row of them.
        ids: what they are, in terms of the last `len(widths)` inputs.
        widths, shared: of each of these; see `id_arithmetic.Source`.
        extents: if the table holds one for each column.
        complaint: what is said of an id that the table does not have.
    """

    bits: int
    dim: int
    columns: int
    ids: Expression
    widths: tuple[int, ...]
    shared: tuple[bool, ...]
    complaint: str
    extents: Extents | None = None

    @property
    def tables(self) -> int:
        """How many inputs come before the ids: a table, and scales if it holds codes."""
        return 1 if self.bits > 8 else 2

    @property
    def read(self) -> Given:
        """Where the ids, or the first of those that they are computed from, begin."""
        return next(given for given in givens(self.ids) if not self.shared[given.source])

    @property
    def by_column(self) -> bool:
        """True if the code for one column is not that for another."""
        return self.extents is not None or (not isinstance(self.ids, Given) and self.ids.differ)


@dataclass(frozen=True)
class Part:
    """An operand of a concatenation: a value, or rows, added or multiplied if of several tables.

    Attributes:
        width: its elements in a row of the concatenation.
        terms: empty for a value, which is one input.
        combined: "add" or "mul", how the rows of several terms become one.
        pool: how all rows of one term become one.
        start, source: of a value: columns from `start` on of an input of `source` columns.
        kept: rows of codes of 8 bits stay so, for who multiplies bytes.
    """

    width: int
    terms: tuple[Term, ...] = ()
    combined: str = ""
    pool: EmbeddingBag | None = None
    start: int = 0
    source: int = 0
    kept: bool = False

    @property
    def inputs(self) -> int:
        return sum(term.tables + len(term.widths) for term in self.terms) or 1


def parts_of(node: Node) -> Iterator[tuple[Part, list[Value]]]:
    """The operands of a LookupConcat and the inputs of each."""
    inputs = iter(value for value in node.inputs if value is not None)
    for part in node.attrs["parts"]:
        yield part, [next(inputs) for _ in range(part.inputs)]


@type_rule(OP_TYPE, domain=DOMAIN)
def _lookup_concat_type(node: Node) -> list[Type | None]:
    return [tensor_type("float32", node.attrs["shape"])]


@cost_rule(OP_TYPE, domain=DOMAIN)
def cost(node: Node) -> Cost:
    """Values, and what lookups take, are read and written once; rows are added or multiplied."""
    rows, parts = node.attrs["rows"], node.attrs["parts"]
    written = 4 * node.attrs.get("summed", sum(part.width for part in parts)) * rows
    copied = sum(part.width for part in parts if not part.terms)
    moved = sum((found.moved for found in lookups(node)), 8 * copied * rows)
    if "summed" in node.attrs:
        width = sum(part.width for part in parts)
        return Cost(width * rows, moved - 4 * width * rows, written)
    pooled = sum(part.width * part.terms[0].columns for part in parts if part.pool is not None)
    combined = sum(part.width * (len(part.terms) - 1) for part in parts if part.terms)
    return Cost((pooled + combined) * rows, moved - written, written)


@lookup_rule(OP_TYPE, domain=DOMAIN)
def lookups(node: Node) -> Iterator[Lookup]:
    """What the parts of a node look up."""
    rows = node.attrs["rows"]
    for part, inputs in parts_of(node):
        at = 0
        for number, term in enumerate(part.terms):
            read = term.read
            table, ids = inputs[at], inputs[at + term.tables + read.source]
            at += term.tables + len(term.widths)
            one = term.columns == 1 and term.widths[read.source] > 1
            column = read.start if one or term.extents is not None else None
            written = 0 if number else rows * (part.width // term.dim)
            whole = Extents((0,), (table.tensor.dims[0],))  # type: ignore[arg-type]
            starts, sizes = term.extents or whole
            count = rows * (1 if term.extents is not None else term.columns)
            for k, (start, size) in enumerate(zip(starts, sizes)):
                name = f"{table.name}[{start}:{start + size}]" if term.extents else table.name
                moved = bytes_moved(ids, count, term.dim, term.bits, written // len(starts))
                place = None if column is None else column + k
                yield Lookup(name, size, term.dim, term.bits, ids, place, moved)
