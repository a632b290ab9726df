"""Rows that one column of a matrix of ids names, and how several such columns are read at once.

What is computed for each column alone, in the same way for all, is computed for all of them
together: columns become a matrix and their constants a vector (superword-level parallelism: Larsen
and Amarasinghe, "Exploiting superword level parallelism with multimedia instruction sets", 2000).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.ir.types import UnknownRankError
from graphopt.ops.table_rows import DOMAIN, OP_TYPE
from graphopt.passes._shapes import ints_of, slice_bounds, without_ones
from graphopt.passes._stacked import stacked
from graphopt.rewrite import Rewriter

_OF_ROWS = frozenset(["Add", "Mul", "Sub"])
_OF_IDS = frozenset(
    ["Add", "Sub", "Mul", "Div", "Mod", "Cast", "Floor", "Where", "And", "Or", "Not"]
    + ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"]
)
_VIEWS = frozenset(["Reshape", "Squeeze", "Unsqueeze"])
_MAX_NODES = 32  # of one column


@dataclass
class Lane:
    """Rows, [n, dim] but for axes of size 1, that one column of ids names.

    Attributes:
        value: the rows.
        form: what the lanes of one group have in common.
        columns: every column of a matrix that is read, in the order of `form`.
        lookups: the Gathers from tables.
        nodes: what computes the rows.
    """

    value: Value
    form: tuple[object, ...] = ()
    columns: list[int] = field(default_factory=list)
    lookups: list[Node] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    @property
    def tables(self) -> list[Value]:
        """The tables, in order."""
        return [table for node in self.lookups if (table := node.inputs[0]) is not None]


def lane_of(value: Value) -> Lane | None:
    """`value` as rows that a column of ids names; None if it is not that."""
    lane = Lane(value)
    try:
        form = _rows_form(lane, value)
    except UnknownRankError:
        return None
    if form is None or len(lane.nodes) > _MAX_NODES:
        return None
    lane.form = (form, len(value.tensor.dims))
    return lane


def _rows_form(lane: Lane, value: Value) -> tuple[object, ...] | None:
    node = value.producer
    if node is None or value.shape is None or len(lane.nodes) > _MAX_NODES:
        return None
    if value is not lane.value and (len(value.uses) > 1 or value.is_graph_output):
        return None
    lane.nodes.append(node)
    inputs = node.operands
    if node.op in _VIEWS and value.shape[-1:] == inputs[0].tensor.dims[-1:]:
        same = without_ones(value.tensor.dims) == without_ones(inputs[0].tensor.dims)
        return _rows_form(lane, inputs[0]) if same else None
    if node.op in _OF_ROWS and all(operand.shape == value.shape for operand in inputs):
        forms = [_rows_form(lane, operand) for operand in inputs]
        return None if None in forms else (node.op, *forms)
    if node.op != "Gather" or node.attr("axis") != 0:
        return None
    table, ids = inputs
    if table.const is None or table.const.ndim != 2 or not table.const.size:
        return None
    lane.lookups.append(node)
    form = None if ids.const is not None else _ids_form(lane, ids)
    return None if form is None else ("rows", table.dtype, table.tensor.dims[1], form)


def _ids_form(lane: Lane, ids: Value) -> tuple[object, ...] | None:
    node, taken = ids.producer, column_of(ids)
    if ids.const is not None:
        return (ids.dtype,) if ids.const.size == 1 else None
    if taken is not None:
        matrix, at = taken
        lane.columns.append(at)
        # Lanes come side by side, which is the order of a concatenation behind the first axis only.
        return (matrix,) if matrix.tensor.dims[0] == lane.value.tensor.dims[0] else None
    if node is None or not node.inputs or len(lane.nodes) > _MAX_NODES:
        return None
    lane.nodes.append(node)
    inputs = node.operands
    if node.op in _VIEWS and without_ones(inputs[0].tensor.dims) == without_ones(ids.tensor.dims):
        return _ids_form(lane, inputs[0])
    if node.op not in _OF_IDS or any(
        v.const is None and without_ones(v.tensor.dims) != without_ones(ids.tensor.dims)
        for v in inputs
    ):
        return None
    forms = [_ids_form(lane, operand) for operand in inputs]
    return None if None in forms else (node.op, *sorted(node.attrs.items()), *forms)


def column_of(ids: Value) -> tuple[Value, int] | None:
    """The matrix and the column of it that `ids` is, as [n, 1] or [n]."""
    taken = ids.producer
    matrix = None if taken is None or not taken.inputs else taken.inputs[0]
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


# --------------------------------------------------------------------- together


class Together:
    """Writes what lanes of one form compute, once for all: [n, lanes] for ids, then rows."""

    def __init__(self, rw: Rewriter) -> None:
        self._rw = rw
        self._made: dict[tuple[Value, ...], Value] = {}

    def of(self, values: tuple[Value, ...]) -> Value:
        """The values of all lanes as one."""
        if values not in self._made:
            self._made[values] = self._computed(values)
        return self._made[values]

    def _computed(self, values: tuple[Value, ...]) -> Value:
        rw, first, taken = self._rw, values[0], column_of(values[0])
        if first.const is not None:
            numbers = np.array([v.const.item() for v in values if v.const is not None])
            same = (numbers == numbers[0]).all()
            return rw.const(numbers[0] if same else numbers, first.const.dtype)
        if taken is not None:
            matrix, start = taken
            if matrix.tensor.dims[1] == len(values):
                return matrix
            return rw.op.Slice(matrix, rw.ints(start), rw.ints(start + len(values)), rw.ints(1))
        nodes = [value.producer for value in values if value.producer is not None]
        operands = [tuple(v for v in column if v) for column in zip(*(n.inputs for n in nodes))]
        if nodes[0].op in _VIEWS:
            return self.of(operands[0])
        if nodes[0].op == "Gather":
            return self._looked_up(*operands)
        inputs = [self.of(operand) for operand in operands]
        return rw.insert(nodes[0].op_type, inputs, nodes[0].attrs, domain=nodes[0].domain).output

    def _looked_up(self, tables: tuple[Value, ...], named: tuple[Value, ...]) -> Value:
        rw, ids = self._rw, self.of(named)
        if len(set(tables)) == 1:
            return rw.op.Gather(tables[0], ids, axis=0)
        whole, starts = stacked(tables)
        rows = [len(table.const) for table in tables if table.const is not None]
        if all(_is_remainder(v, count) for v, count in zip(named, rows)):
            number = rw.op.Add(ids, rw.const(starts, named[0].dtype))
        else:
            inputs = [ids, rw.ints(*rows), rw.ints(*starts)]
            number = rw.insert(OP_TYPE, inputs, domain=DOMAIN).output
        return rw.op.Gather(rw.const(whole), number, axis=0)


def _is_remainder(ids: Value, count: int) -> bool:
    """True if `ids` are remainders of a division by at most `count`, so that they name rows."""
    node = ids.producer
    while node is not None and node.op in _VIEWS and node.inputs[0] is not None:
        node = node.inputs[0].producer
    if node is None or node.op != "Mod" or node.attr("fmod", 0):
        return False
    divisor = node.const(1)
    return divisor is not None and divisor.size == 1 and 0 < divisor.item() <= count
