"""What unrolling a Loop and a Scan share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import TensorType, dtype_to_numpy
from graphopt.passes._inline import inline, replace
from graphopt.rewrite.rewriter import erase_dead


@dataclass
class Unrolled:
    """Iterations of `node` written out right before it.

    Attributes:
        carried: what the next iteration is given.
        collected: what each iteration gives to be stacked.
    """

    node: Node
    carried: list[Value]
    collected: list[list[Value]] = field(default_factory=list)
    inserted: list[Node] = field(default_factory=list)

    @property
    def graph(self) -> Graph:
        assert self.node.graph is not None
        return self.node.graph

    def insert(self, op_type: str, inputs: Sequence[Value], **attrs: Any) -> Value:
        """Insert a node before the loop; returns its output."""
        made = self.graph.insert(op_type, inputs, attrs, before=self.node, origin=self.node.origin)
        self.inserted.append(made)
        return made.output

    def iterate(self, body: Graph, arguments: Sequence[Value], skip: int = 0) -> list[Value]:
        """Write out one iteration; returns the first `skip` outputs, which are not carried."""
        results = inline(body, arguments, self.node, self.inserted)
        count = skip + len(self.carried)
        self.carried = results[skip:count]
        self.collected.append(results[count:])
        return results[:skip]

    def finish(self, axes: Sequence[int], backwards: Sequence[int] = ()) -> str | None:
        """Replace the loop by its results; returns why not, having changed nothing of it."""
        results: list[Value | None] = list(self.carried)
        for k, output in enumerate(self.node.outputs[len(self.carried) :]):
            if not output.uses:
                results.append(None)
                continue
            column = [row[k] for row in self.collected]
            if backwards and backwards[k]:
                column.reverse()
            stacked = self._stacked(column, axes[k]) if column else self._empty(output, axes[k])
            if stacked is None:
                return "it never runs, and the shape of its empty result is not known"
            results.append(stacked)
        graph = self.graph
        replace(self.node, results)
        erase_dead(graph, self.inserted)
        return None

    def take_back(self) -> None:
        """Erase what was inserted."""
        for node in reversed(self.inserted):
            self.graph.erase(node)

    def _stacked(self, column: list[Value], axis: int) -> Value:
        at = self.graph.constant(np.array([axis], np.int64))
        return self.insert(
            "Concat", [self.insert("Unsqueeze", [value, at]) for value in column], axis=axis
        )

    def _empty(self, output: Value, axis: int) -> Value | None:
        type_ = output.type
        if not isinstance(type_, TensorType) or type_.shape is None:
            return None
        rest = [dim for at, dim in enumerate(type_.shape) if at != axis % len(type_.shape)]
        shape = [dim for dim in rest if isinstance(dim, int)]
        if len(shape) < len(rest):
            return None
        shape.insert(axis % len(type_.shape), 0)
        return self.graph.constant(np.zeros(shape, dtype_to_numpy(type_.dtype)))
