"""Tables whose rows have more bits the more often they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ops.quantized_lookup import DOMAIN, OP_TYPE, packed
from graphopt.passes._rounding import RoundedRows
from graphopt.passes._row_maps import narrowed, numbered

_SHARES = (0.95, 0.8, 0.5)  # of what is looked up, as offers of what the wide rows serve
_WORTH = 0.9  # of the bytes that 8 bits for every row take


@dataclass(frozen=True, eq=False)
class Bands:
    """A table as rows of 8 bits and, after them, rows of 4 bits.

    Attributes:
        parts: codes and scales of the rows of 8 bits, codes and scales of those of 4. Rows that are
            read most come first, after one of zeros, which is there as in `RowMap`.
        numbers: [old rows]: where each row is.
        share: of what is looked up, how much the wide rows serve.
        error: root mean square of what an element that is looked up loses.
    """

    parts: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    numbers: np.ndarray
    share: float
    error: float

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (*self.parts, self.numbers))

    def constants(self, graph: Graph, name: str) -> list[Value]:
        """The parts, to look up in."""
        names = ("wide", "wide.scales", "narrow", "narrow.scales")
        return [graph.constant(part, f"{name}.{n}") for n, part in zip(names, self.parts)]

    def lookup(self, node: Node, constants: list[Value]) -> Value:
        """Rows for the ids that `node`, a Gather, takes: out of one part or the other."""
        graph = node.graph
        assert graph is not None

        def insert(op: str, inputs: Sequence[Value], domain: str = "", bits: int = 0) -> Value:
            attrs = {"bits": bits} if bits else None
            return graph.insert(
                op, inputs, attrs, domain=domain, before=node, origin=node.origin
            ).output

        wide, wide_scales, narrow, narrow_scales = constants
        number = numbered(node, self.numbers)
        first, zero = (
            graph.constant(np.array(k, number.tensor.dtype)) for k in (len(self.parts[0]), 0)
        )
        is_wide = insert("Less", [number, first])
        near = insert("Where", [is_wide, number, zero])
        far = insert("Where", [is_wide, zero, insert("Sub", [number, first])])
        columns = [
            insert(OP_TYPE, [wide, wide_scales, near], DOMAIN, 8),
            insert(OP_TYPE, [narrow, narrow_scales, far], DOMAIN, 4),
        ]
        last = graph.constant(np.array([-1]))
        return insert("Where", [insert("Unsqueeze", [is_wide, last]), *columns])


def bands_of(table: np.ndarray, counts: np.ndarray) -> Iterator[Bands]:
    """Forms of a table that are smaller than with 8 bits for all rows, the largest first.

    Args:
        counts: how often each row is read.
    """
    order = np.argsort(-counts, kind="stable")
    served = np.cumsum(counts[order]) / counts.sum()
    numbers = np.empty(len(table), np.int32)
    numbers[order] = np.arange(1, len(table) + 1)
    numbers = narrowed(numbers)
    for share in _SHARES:
        border = int(np.searchsorted(served, share)) + 1
        if border >= len(table):
            continue
        zero = np.zeros_like(table[:1])
        wide = RoundedRows.of(np.concatenate([zero, table[order[:border]]]), 8, half_scales=True)
        narrow = RoundedRows.of(table[order[border:]], 4, half_scales=True)
        error = (share * wide.error**2 + (1 - share) * narrow.error**2) ** 0.5
        parts = (wide.codes, wide.scales, packed(narrow.codes), narrow.scales)
        found = Bands(parts, numbers, share, error)
        if found.nbytes <= _WORTH * table.size:
            yield found
