"""Codes that stand for zero, where a lookup finds no row: `--oob zero` promises zeros, not codes 0.

What reads codes says which of them stands for zero. Lookups are told, in a note `_fill`, which
lowerings use for ids out of range; other policies need no such row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from graphopt.ir.content import known_ints
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.slices import sliced
from graphopt.ir.types import TensorType

LOOKUPS = frozenset(["Gather", "GatherElements", "GatherND"])
UNKNOWN = np.array(np.nan)
"""Of codes of which not one is known to stand for zero: such a lookup has no rows of zeros."""

_ALL = slice(None)
# Which inputs are codes that are results, too: moved, chosen or the greatest of some.
_MOVES: dict[str, slice] = {
    **dict.fromkeys(["Concat", "Max", "Min"], _ALL),
    **dict.fromkeys(["ScatterElements", "ScatterND"], slice(0, None, 2)),
    "Where": slice(1, None),
    **dict.fromkeys(
        ["Compress", "DepthToSpace", "Expand", "Flatten", "Identity", "MaxPool", "Pad", "ReduceMax"]
        + ["ReduceMin", "Reshape", "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze"]
        + ["Tile", "Transpose", "Trilu", "Unsqueeze", *LOOKUPS],
        slice(1),
    ),
}
# Which inputs are codes, and which say what of these stands for zero.
_ZEROS = {
    "ConvInteger": ((0, 2), (1, 3)),
    "DequantizeLinear": ((0, 2),),
    "MatMulInteger": ((0, 2), (1, 3)),
    "QLinearConv": ((0, 2), (3, 5)),
    "QLinearMatMul": ((0, 2), (3, 5)),
}


def tell_lookups(graph: Graph) -> None:
    """Set `_fill` of all lookups of codes, of as many dimensions as their result or a scalar.

    Where readers of one lookup disagree, each gets its own. Not told are lookups whose codes are
    only moved, out of the graph or into other arithmetic: their rows are codes 0. Where columns of
    different zero points are moved so that it is not known which becomes which, or a zero point is
    not known, the note is `UNKNOWN`.
    """
    for node in list(graph.walk()):
        for codes, zero in _ZEROS.get(node.op, ()):
            value = node.inputs[codes]
            if value is not None and isinstance(value.type, TensorType):
                told = _told(value, _zero(node, codes, zero), node)
                if told is not value:
                    assert node.graph is not None
                    node.graph.set_input(node, codes, told)


def _zero(node: Node, codes: int, index: int) -> np.ndarray:
    """The zero point of an input: a scalar, or what broadcasts to it."""
    value, zero = node.inputs[codes], node.const(index)
    if node.input(index) is None:
        return np.zeros((), np.int64)
    if zero is None or not zero.size or value is None:
        return UNKNOWN
    zero = zero.astype(np.int64)
    if (zero == zero.flat[0]).all():
        return np.array(zero.flat[0])
    if node.op != "DequantizeLinear" or zero.ndim != 1 or value.rank is None:
        return UNKNOWN
    axis = node.attr("axis") % value.rank
    return zero.reshape([-1 if k == axis else 1 for k in range(value.rank)])


def _told(value: Value, fill: np.ndarray, reader: Node) -> Value:
    """`value` with `fill` in the rows that its lookups do not find, for `reader`."""
    node = value.producer
    if node is None or node.op not in _MOVES:
        return value
    inputs = list(node.inputs)
    for k in range(len(inputs))[_MOVES[node.op]]:
        moved = inputs[k]
        if moved is not None and isinstance(moved.type, TensorType):
            inputs[k] = _told(moved, _before(node, k, value, fill), reader)
    attrs, other = dict(node.attrs), inputs != list(node.inputs)
    if node.op in LOOKUPS:
        told = fill if node.op == "Gather" or not fill.ndim else UNKNOWN
        other |= "_fill" in attrs and not np.array_equal(attrs["_fill"], told, equal_nan=True)
        attrs["_fill"] = told
        if not other:
            node.attrs["_fill"] = told
    if not other:
        return value
    assert reader.graph is not None
    copy = reader.graph.insert(
        node.op_type,
        inputs,
        attrs,
        domain=node.domain,
        outputs=len(node.outputs),
        before=reader,
        origin=node.origin,
    )
    return copy.outputs[node.outputs.index(value)]


# ------------------------------------------------------------------ before moves


def _before(node: Node, k: int, value: Value, fill: np.ndarray) -> np.ndarray:
    """What of input `k` stands for zero, so that `fill` does in result `value` of `node`."""
    data, rule = node.inputs[k], _RULES.get(node.op)
    if fill.size == 1 or node.op == "Identity":
        return fill if fill.size > 1 else fill.reshape(())
    if rule is None or data is None or data.shape is None or value.shape is None:
        return UNKNOWN
    found = rule(_Move(node, k, value, data.shape, value.shape), fill)
    return UNKNOWN if found is None else found


class _Move(NamedTuple):
    """How input `k` of `node`, of shape `data`, becomes `value` of shape `result`."""

    node: Node
    k: int
    value: Value
    data: tuple[Dim, ...]
    result: tuple[Dim, ...]


def _of_operand(move: _Move, fill: np.ndarray) -> np.ndarray | None:
    """Concat"""
    axis = move.node.attr("axis")
    places = _places(move, move.node.inputs, move.k)
    if fill.shape[axis] == 1:
        return fill
    return None if places is None else fill.take(places, axis)


def _of_whole(move: _Move, fill: np.ndarray) -> np.ndarray | None:
    """Split"""
    outputs = move.node.outputs
    places = _places(move, outputs, outputs.index(move.value))
    return _spread(move, move.node.attr("axis"), places, fill)


def _places(move: _Move, parts: Sequence[Value | None], k: int) -> range | None:
    """Where part `k` of a Concat or Split lies along its axis."""
    sizes = [v.tensor.dims[move.node.attr("axis")] for v in parts[: k + 1] if v is not None]
    known = [size for size in sizes if isinstance(size, int)]
    return range(sum(known[:-1]), sum(known)) if len(known) == len(sizes) else None


def _spread(
    move: _Move, axis: int, places: Sequence[int] | None, fill: np.ndarray
) -> np.ndarray | None:
    """`fill` at places along an axis of the data; what is elsewhere is not read."""
    size, axis = move.data[axis], axis % fill.ndim
    if fill.shape[axis] == 1:
        return fill
    if not isinstance(size, int) or places is None:
        return None
    spread = np.zeros((*fill.shape[:axis], size, *fill.shape[axis + 1 :]), fill.dtype)
    np.moveaxis(spread, axis, 0)[list(places)] = np.moveaxis(fill, axis, 0)
    return spread


def _of_sliced(move: _Move, fill: np.ndarray) -> np.ndarray | None:
    given = [move.node.input(i) for i in range(1, 5)]
    known = [None if v is None or v.content is None else known_ints(v.content) for v in given]
    if any(v is not None and numbers is None for v, numbers in zip(given, known)):
        return None
    starts, ends = known[0] or [], known[1] or []
    found: np.ndarray | None = fill
    for k, axis in enumerate(known[2] or range(len(starts))):
        size, step = move.data[axis], 1 if known[3] is None else known[3][k]
        places = sliced(size, starts[k], ends[k], step) if isinstance(size, int) else None
        found = None if found is None else _spread(move, axis, places, found)
    return found


def _of_expanded(move: _Move, fill: np.ndarray) -> np.ndarray | None:
    added = fill.ndim - len(move.data)
    own = all(size in (1, dim) for size, dim in zip(fill.shape[added:], move.data))
    return fill.reshape(fill.shape[added:]) if own and math.prod(fill.shape[:added]) == 1 else None


def _of_transposed(move: _Move, fill: np.ndarray) -> np.ndarray:
    return fill.transpose(np.argsort(move.node.attr("perm") or range(fill.ndim)[::-1]))


def _of_table(move: _Move, fill: np.ndarray) -> np.ndarray | None:
    """Gather, whose data may be looked up themselves: along all axes but that of the ids."""
    axis, ids = move.node.attr("axis") % len(move.data), fill.ndim - len(move.data) + 1
    if math.prod(fill.shape[axis : axis + ids]) > 1:
        return None
    return fill.reshape(*fill.shape[:axis], 1, *fill.shape[axis + ids :])


def _of_reshaped(move: _Move, fill: np.ndarray) -> np.ndarray | None:
    """Elements in the same order, of which whole periods of zero points are in the last axes."""
    varied = next(axis for axis, size in enumerate(fill.shape) if size > 1)
    inner = [size for size in move.result[varied:] if isinstance(size, int)]
    if len(inner) < fill.ndim - varied:
        return None
    period = np.broadcast_to(fill.reshape(fill.shape[varied:]), inner).reshape(-1)
    last: list[int] = []
    for size in reversed(move.data):
        if not isinstance(size, int):
            return None
        last.insert(0, size)
        times, left = divmod(math.prod(last), period.size)
        if times and not left:
            before = [1] * (len(move.data) - len(last))
            return np.tile(period, times).reshape([*before, *last])
    return None


_RULES: dict[str, Callable[[_Move, np.ndarray], np.ndarray | None]] = {
    "Concat": _of_operand,
    "Expand": _of_expanded,
    "Gather": _of_table,
    "Slice": _of_sliced,
    "Split": _of_whole,
    "Transpose": _of_transposed,
    **dict.fromkeys(["Flatten", "Reshape", "Squeeze", "Unsqueeze"], _of_reshaped),
}
