"""Values computed anew with their rows in another order, or with rows that had been left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from graphopt.ir.dims import Dim, product, substitute, symbols
from graphopt.ir.graph import Node, Value
from graphopt.passes._rowwise import Operands, operands_at
from graphopt.passes._shapes import slice_bounds
from graphopt.passes._sizes import nearest_inputs, pieces_of, write
from graphopt.rewrite import Rewriter

End = Callable[[Value, int], "Value | None"]
Inputs = list["Value | None"]


class Stuck(Exception):
    """Why a value cannot be computed with other rows."""


class AllRows:
    """Computes values, whose rows depend on a choice, as if all rows had been chosen in order.

    Up to where rows are chosen, each op must compute a row from the same row of its operands.
    """

    def __init__(
        self,
        rw: Rewriter,
        chooser: Node,
        end: End,
        *,
        sizes: Mapping[str, Dim] | None = None,
        can_fail: Callable[[Node], str] = lambda node: "",
        harmless: Callable[[Node, Inputs], Inputs] = lambda node, inputs: inputs,
    ) -> None:
        """Args:
        chooser: its outputs say which rows.
        end: what a value, its rows along an axis, was chosen from; None if it was not.
        sizes: what the sizes that the choice has given become.
        can_fail: why an op must not be given rows that it was not given; "" if it may.
        harmless: an op's inputs of all rows, as it may be given them.
        """
        self._rw, self._end, self._can_fail = rw, end, can_fail
        self._harmless = harmless
        self._sizes = sizes or {}
        self._depends = _following(chooser)
        self._found: dict[tuple[Value, int], Value] = {}

    def of(self, value: Value, axis: int) -> Value:
        """`value` with all rows along `axis`.

        Raises:
            Stuck: some op mixes rows.
        """
        key = (value, axis)
        if key not in self._found:
            found = self._end(value, axis) or self._computed(value, axis)
            self._found[key] = found
        return self._found[key]

    def _computed(self, value: Value, axis: int) -> Value:
        node = value.producer
        if node not in self._depends:
            if node is not None and node.op == "ConstantOfShape":
                return value  # all rows are the same
            raise Stuck(f"{value.name!r} has rows of its own")
        assert node is not None
        along = operands_of(value, axis)
        if along is None:
            raise Stuck(f"{node.op} does not compute a row from the same row of its operands")
        if reason := self._can_fail(node):
            raise Stuck(reason)
        places = dict(along)
        inputs = [
            self._operand(operand, places.get(slot)) for slot, operand in enumerate(node.inputs)
        ]
        made = self._rw.insert(
            node.op_type,
            self._harmless(node, inputs),
            dict(node.attrs),
            domain=node.domain,
            outputs=len(node.outputs),
            origin=node.origin,
        )
        result = made.outputs[node.outputs.index(value)]
        if result.shape != tuple(map(self._size, value.tensor.dims)):
            raise Stuck(f"the shape of {value.name!r} does not follow from its rows")
        return result

    def _operand(self, value: Value | None, axis: int | None) -> Value | None:
        if value is None or (axis is None and value.producer not in self._depends):
            return value
        if axis is not None:
            return self.of(value, axis)
        if value.content is None or value.content.ndim > 1:
            raise Stuck(f"{value.name!r} is read as a whole")
        content = np.array([self._size(x) for x in value.content.reshape(-1)], object)
        sizes = {k: at for k, at in nearest_inputs(value).items() if symbols(k)}
        pieces = pieces_of(content, sizes)
        if isinstance(pieces, str):
            raise Stuck(pieces)
        return write(self._rw, value, pieces)

    def _size(self, dim: Dim) -> Dim:
        return substitute(dim, self._sizes.get)


def _following(node: Node) -> set[Node]:
    """`node` and all that depends on it."""
    found, pending = {node}, [node]
    while pending:
        for value in pending.pop().outputs:
            new = {user for user in value.users if user not in found}
            found |= new
            pending += new
    return found


def operands_of(value: Value, axis: int) -> Operands | None:
    """`operands_at` for one output of a node, and for more ops."""
    node = value.producer
    assert node is not None
    rule = _RULES.get(node.op)
    if rule is not None:
        return rule(node, value, axis)
    return operands_at(node, axis) if value is node.output else None


def _recurrent(node: Node, value: Value, axis: int) -> Operands | None:
    """The samples of an RNN, GRU or LSTM: inputs, lengths and states have one for each."""
    batch_first = bool(node.attr("layout", 0))
    place = 0 if batch_first else (2 if value is node.output else 1)
    if axis != place:
        return None
    side = 0 if batch_first else 1
    found = [(0, side), (4, 0), (5, side), (6, side)]
    return [(slot, at) for slot, at in found if node.input(slot) is not None]


def _last_state(node: Node, value: Value, axis: int) -> Operands | None:
    """graphopt::GRU and graphopt::AttentionalGRU: all but the weights has an axis of samples."""
    slots = [slot for slot in (0, 4, 5) if node.input(slot) is not None]
    return [(slot, 1) for slot in slots] if axis == 1 else None


def _reduction(node: Node, value: Value, axis: int) -> Operands | None:
    data, given = node.inputs[0], node.const(1)
    if data is None or data.shape is None or given is None:
        return None
    over = {int(k) % len(data.shape) for k in given.reshape(-1)}
    kept = [k for k in range(len(data.shape)) if k not in over]
    if node.attr("keepdims", 1):
        return [(0, axis)] if axis in kept else None
    return [(0, kept[axis])]


def _expand(node: Node, value: Value, axis: int) -> Operands | None:
    data = node.inputs[0]
    if data is None or data.shape is None or value.shape is None:
        return None
    place = axis - len(value.shape) + len(data.shape)
    same = place >= 0 and data.shape[place] == value.shape[axis]
    return [(0, place)] if same else []


def _slice(node: Node, value: Value, axis: int) -> Operands | None:
    bounds = slice_bounds(node)
    return None if bounds is None or axis in bounds else [(0, axis)]


_RULES: dict[str, Callable[[Node, Value, int], Operands | None]] = {
    **dict.fromkeys(["RNN", "GRU", "LSTM"], _recurrent),
    **dict.fromkeys(["graphopt::GRU", "graphopt::AttentionalGRU"], _last_state),
    **dict.fromkeys(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"], _reduction),
    "ConstantOfShape": lambda node, value, axis: [],
    "Expand": _expand,
    "Slice": _slice,
}


def rows_axis(value: Value, count: Dim, rest: tuple[Dim, ...]) -> int | None:
    """The axis of `value` that holds `count` rows, if its elements are rows of shape `rest`."""
    dims = value.tensor.dims
    wanted = [dim for dim in rest if dim != 1]
    for axis, dim in enumerate(dims):
        found = [dim for dim in dims[axis + 1 :] if dim != 1]
        if dim == count and product(dims[:axis]) == 1 and found == wanted:
            return axis
    return None
