"""Attention heads, with the layers that make and that read their columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Use, Value
from graphopt.ops.attention import DOMAIN, OP_TYPE, Attention
from graphopt.passes._layer_columns import (
    column_input,
    on_columns,
    with_inputs,
    with_outputs,
)
from graphopt.passes._linear import is_per_column, matrix_of, weight_of
from graphopt.rewrite import Rewriter


@dataclass(frozen=True)
class HeadLayers:
    """An attention between layers with constant weights.

    Attributes:
        attention: the node.
        paths: for q, k and v the layer that makes their columns, and the ops on single columns that
            lead from it to the attention. They may share layers and ops.
        after: the ops on single columns that lead to `second`.
        second: the layer that reads what the heads give.
    """

    attention: Node
    paths: tuple[tuple[Node, ...], ...]
    after: tuple[Node, ...]
    second: Node

    @staticmethod
    def around(attention: Node) -> HeadLayers | str:
        """The layers around an attention, or why heads must stay."""
        found = [_path_to(value) for value in attention.inputs[:3]]
        paths = tuple(path for path in found if path is not None)
        if len(paths) < 3:
            return "its q, k and v are not all columns of layers with constant weights"
        if not _are_only_for(attention, {node for path in paths for node in path}):
            return "columns of its q, k or v are also read elsewhere"
        if _overlap(attention, paths):
            return "its q, k and v share columns in part"
        if any(_heads_of(v) not in (1, attention.attr("heads")) for v in attention.inputs[3:]):
            return "its bias or factor may differ from head to head, or not"
        after = _path_from(attention)
        if after is None:
            return "what its heads give is not read by one layer with constant weights only"
        return HeadLayers(attention, paths, *after)

    @property
    def what(self) -> Attention:
        return Attention.of(self.attention)

    @property
    def hidden(self) -> Value:
        """The columns of the heads, as the second layer reads them."""
        value = self.second.inputs[0]
        assert value is not None
        return value

    @property
    def outgoing(self) -> np.ndarray:
        """The second layer's weight [columns of the heads, outputs]."""
        return matrix_of(self.second)

    def columns_of(self, heads: Iterable[int]) -> np.ndarray:
        """The columns of some heads, in the order of the heads."""
        dim = self.what.dim
        return np.array([head * dim + k for head in heads for k in range(dim)])

    def bytes_with(self, heads: Sequence[int]) -> int:
        """Bytes of weights, without biases, when only `heads` are kept."""
        sizes = [
            len(matrix_of(layer)) * len(columns) for layer, columns in self._read(heads).items()
        ]
        sizes.append(len(self.columns_of(heads)) * self.outgoing.shape[1])
        return sum(sizes) * self.outgoing.itemsize

    def _read(self, heads: Sequence[int]) -> dict[Node, np.ndarray]:
        """Which columns of its layers `heads` need."""
        read: dict[Node, np.ndarray] = {}
        for path, first in zip(self.paths, self.what.columns):
            columns = first + self.columns_of(heads)
            read[path[0]] = np.union1d(read.get(path[0], columns), columns)
        return read

    def replace(self, heads: Sequence[int], mixing: np.ndarray, offset: np.ndarray) -> Value:
        """Keep `heads` only, in order; all columns are about those kept @ `mixing` + `offset`.

        Returns:
            what the attention gives now.
        """
        what, read, made = self.what, self._read(heads), dict[Node, Value]()
        for path in self.paths:
            columns, value = read[path[0]], None
            for node in path:
                if node not in made and value is None:
                    made[node] = with_outputs(node, self.attention, columns)
                elif node not in made and value is not None:
                    made[node] = on_columns(node, self.attention, value, columns)
                value = made[node]
        at = [np.searchsorted(read[p[0]], first) for p, first in zip(self.paths, what.columns)]
        attrs = {**self.attention.attrs, "heads": len(heads), "columns": [int(c) for c in at]}
        inputs: list[Value | None] = [made[path[-1]] for path in self.paths]
        inputs += [self._beside(value, heads) for value in self.attention.inputs[3:]]
        rw = Rewriter(self.attention, [self.attention])
        result = data = rw.insert(OP_TYPE, inputs, attrs, domain=DOMAIN).output
        for node in self.after:
            data = on_columns(node, self.second, data, self.columns_of(heads))
        with_inputs(self.second, data, mixing, offset)
        return result

    def _beside(self, value: Value | None, heads: Sequence[int]) -> Value | None:
        """A bias or factor of the scores of `heads` only."""
        if value is None or _heads_of(value) == 1:
            return value
        rw, axis = Rewriter(self.attention, [self.attention]), len(value.tensor.dims) - 3
        if value.const is not None:
            return rw.const(np.ascontiguousarray(value.const.take(heads, axis)))
        return rw.op.Gather(value, rw.ints(*heads), axis=axis)


def _path_to(value: Value | None) -> tuple[Node, ...] | None:
    """The layer whose columns `value` has, and the ops from there to it."""
    path: list[Node] = []
    while value is not None and value.producer is not None:
        node = value.producer
        path.append(node)
        if weight_of(node) is not None:
            return tuple(reversed(path)) if is_per_column(node.input(2)) else None
        index = column_input(node)
        value = node.inputs[index] if index is not None else None
    return None


def _path_from(attention: Node) -> tuple[tuple[Node, ...], Node] | None:
    """The ops on the columns of `attention`, and the layer after them."""
    path: list[Node] = []
    value = attention.output
    while len(value.uses) == 1:
        node, slot = value.uses[0]
        if not isinstance(node, Node) or node.graph is not attention.graph:
            return None
        if weight_of(node) is not None:
            return (tuple(path), node) if slot == 0 and is_per_column(node.input(2)) else None
        if column_input(node) != slot:
            return None
        path.append(node)
        value = node.output
    return None


def _are_only_for(attention: Node, nodes: set[Node]) -> bool:
    """True if `attention` alone reads what `nodes`, which lead to its q, k and v, give."""

    def is_for_it(use: Use) -> bool:
        user, slot = use
        if user is attention:
            return slot < 3
        return isinstance(user, Node) and user in nodes and column_input(user) == slot

    return all(is_for_it(use) for node in nodes for use in node.output.uses)


def _overlap(attention: Node, paths: Sequence[Sequence[Node]]) -> bool:
    """True if two of q, k and v are columns of one layer, some the same and some not."""
    what = Attention.of(attention)
    starts = [(path[0], first) for path, first in zip(paths, what.columns)]
    return any(a is b and 0 < abs(x - y) < what.width for a, x in starts for b, y in starts)


def _heads_of(value: Value | None) -> Dim:
    """The size of the axis of heads in a bias or factor, 1 without one."""
    dims = value.tensor.dims if value is not None else ()
    return dims[-3] if len(dims) >= 3 else 1
