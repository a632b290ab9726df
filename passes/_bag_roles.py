"""Who is who among the values that a loop over bags reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from graphopt.ir.dims import exact_div
from graphopt.ir.graph import Node, Value
from graphopt.ir.types import TensorType, is_float

_KEEPS_ELEMENTS = frozenset(
    ["Cast", "CastLike", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze"]
    + ["Unsqueeze"]
)
"""Ops whose result consists of elements of their first input."""

_INTEGERS = ("int32", "int64")


@dataclass(frozen=True)
class Roles:
    """The inputs of an embedding bag; offsets are None where every row of the ids is a bag."""

    table: Value
    ids: Value
    offsets: Value | None
    weights: Value | None


def find_roles(
    nodes: Iterable[Node], read: Collection[Value], frontier: list[Value]
) -> Roles | None:
    """The roles of all that `nodes` need to be given; None if these are not the inputs of a bag.

    Args:
        nodes: what computes the bag, nodes of subgraphs included.
        read: what is read from outside, constants included.
        frontier: what is read and neither constant nor computed by `nodes`.
    """
    found = {_lookup(node, read, frontier) for node in nodes}
    found.discard(None)
    if len(found) != 1:
        return None
    table, ids = found.pop()  # type: ignore[misc]
    if ids is None or ids.dtype not in _INTEGERS or ids.rank not in (1, 2):
        return None
    others = [value for value in frontier if value is not table and value is not ids]
    if any(not isinstance(value.type, TensorType) for value in others):
        return None
    weights = [v for v in others if v.dtype == table.dtype and v.rank == ids.rank]
    offsets = [v for v in others if v.dtype in _INTEGERS and v.rank == 1]
    if len(others) != len(offsets) + len(weights) or len(weights) > 1:
        return None
    if len(offsets) != (1 if ids.rank == 1 else 0):
        return None
    return Roles(table, ids, offsets[0] if offsets else None, weights[0] if weights else None)


def _lookup(
    node: Node, read: Collection[Value], frontier: list[Value]
) -> tuple[Value, Value | None] | None:
    """The table and (if they can be traced) the ids, if `node` looks up rows of what is `read`."""
    if node.op != "Gather" or node.attr("axis") not in (0, -2):
        return None
    table, ids = node.inputs[:2]
    assert table is not None and ids is not None
    if not isinstance(table.type, TensorType) or table.rank != 2 or not is_float(table.dtype):
        return None
    if table not in read or (table.const is None and table not in frontier):
        return None
    return table, _origin(ids, frontier)


def _origin(value: Value | None, frontier: list[Value]) -> Value | None:
    """The value of `frontier` whose elements `value` consists of."""
    while value is not None and value not in frontier:
        producer = value.producer
        if producer is None or producer.op not in _KEEPS_ELEMENTS:
            return None
        value = producer.inputs[0]
    return value


def stride_of(ids: Value, offsets: Value | None) -> int | None:
    """The number of ids in every bag, if the offsets are 0, k, 2k, … up to all ids; else None."""
    count = ids.tensor.dims[0]
    if offsets is None or offsets.producer is None or offsets.producer.op != "Range":
        return None
    contents = [None if v is None else v.content for v in offsets.producer.inputs]
    start, limit, step = (None if c is None else np.asarray(c).item() for c in contents)
    if start != 0 or limit != count or not isinstance(step, int) or step < 1:
        return None
    return step if exact_div(count, step) is not None else None
