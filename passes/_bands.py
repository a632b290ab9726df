"""Tables whose rows have more bits the more often they are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ops import quantized_embedding_bag, quantized_lookup
from graphopt.ops.coded_bags import attributes_of
from graphopt.ops.quantized_lookup import DOMAIN, packed
from graphopt.passes._rounding import RoundedRows
from graphopt.passes._row_maps import narrowed, numbered
from graphopt.rewrite import Rewriter

_SHARES = (0.95, 0.8, 0.5)  # of what is looked up, as offers of what the wide rows serve
_WORTH = 0.9  # of the bytes that 8 bits for every row take
_LOOKUPS = {
    "Gather": quantized_lookup.OP_TYPE,
    "EmbeddingBag": quantized_embedding_bag.OP_TYPE,
}


@dataclass(frozen=True, eq=False)
class Bands:
    """A table as rows of 8 bits and, after them, rows of 4 bits.

    Attributes:
        parts: codes and scales of the rows of 8 bits, codes and scales of those of 4. Each begins
            with a row of zeros, which whatever the other part has reads here. Rows that are read
            most come first.
        numbers: [old rows]: where each row is, the zeros of the second part left out.
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
        """What `node`, a Gather or a bag, makes of its ids: the sum of both parts."""
        rw, number = Rewriter(node, [node]), numbered(node, self.numbers)
        border, rest = len(self.parts[0]), node.inputs[2:]
        first, last, zero = (rw.const(k, number.dtype) for k in (border, border - 1, 0))
        near = rw.op.Where(rw.op.Less(number, first), number, zero)
        far = rw.op.Max(rw.op.Sub(number, last), zero)

        def looked_up(part: list[Value], ids: Value, bits: int) -> Value:
            op, attrs = _LOOKUPS[node.op_type], {**attributes_of(node), "bits": bits}
            return rw.insert(op, [*part, ids, *rest], attrs, domain=DOMAIN).output

        return rw.op.Add(looked_up(constants[:2], near, 8), looked_up(constants[2:], far, 4))


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
        narrow = RoundedRows.of(np.concatenate([zero, table[order[border:]]]), 4, half_scales=True)
        error = (share * wide.error**2 + (1 - share) * narrow.error**2) ** 0.5
        parts = (wide.codes, wide.scales, packed(narrow.codes), narrow.scales)
        found = Bands(parts, numbers, share, error)
        if found.nbytes <= _WORTH * table.size:
            yield found
