"""Columns of a matrix of ids and the rows that they look up."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.ir.graph import Node, Value
from graphopt.passes._shapes import ints_of, slice_bounds


@dataclass(frozen=True)
class Column:
    """The rows of `table` that column `at` of `matrix`, cast to the dtype `to`, names.

    Attributes:
        value: the rows, [n, 1, dim] or [n, dim].
        to: ONNX's number of a dtype; None where there is no cast.
    """

    value: Value
    table: Value
    matrix: Value
    at: int
    to: int | None

    @property
    def kind(self) -> tuple[object, ...]:
        """What operands that become one lookup have in common."""
        dims = self.value.tensor.dims
        return self.matrix, self.to, self.table.dtype, self.table.tensor.dims[1], len(dims)


def column_of(value: Value) -> Column | None:
    """`value` as rows of a constant table that a column of ids names; None if it is not that."""
    gather = value.producer
    if gather is None or gather.op != "Gather" or gather.attr("axis") != 0:
        return None
    table, ids = gather.inputs[0], gather.inputs[1]
    if table is None or ids is None or table.const is None or table.const.ndim != 2:
        return None
    if not table.const.size:
        return None
    to = None
    if ids.producer is not None and ids.producer.op == "Cast":
        to, ids = ids.producer.attr("to"), ids.producer.inputs[0]
    found = _place(ids)
    return None if found is None else Column(value, table, *found, to)


def _place(ids: Value | None) -> tuple[Value, int] | None:
    """The matrix and the column of it that `ids` is, as [n, 1] or [n]."""
    taken = None if ids is None else ids.producer
    matrix = None if taken is None else taken.inputs[0]
    if matrix is None or matrix.rank != 2 or not isinstance(matrix.tensor.dims[1], int):
        return None
    start = _start(taken, ids, matrix.tensor.dims[1])  # type: ignore[arg-type]
    return None if start is None else (matrix, start)


def _start(taken: Node, ids: Value, width: int) -> int | None:
    """Which of `width` columns `taken` takes of its input as `ids`; None for other ops."""
    if taken.op == "Slice":
        start, end = (slice_bounds(taken) or {}).get(1, (0, 0))
        return start if ids.tensor.dims[1] == 1 == end - start else None
    if taken.op == "Split" and taken.attr("axis") in (1, -1) and ids.tensor.dims[1] == 1:
        before = [v.tensor.dims[1] for v in taken.outputs[: taken.outputs.index(ids)]]
        known = [size for size in before if isinstance(size, int)]
        return sum(known) if known == before else None
    position = ints_of(taken.input(1)) if taken.op == "Gather" else None
    if position is None or ids.rank != 1 or taken.attr("axis") not in (1, -1):
        return None
    return position[0] % width if -width <= position[0] < width else None
