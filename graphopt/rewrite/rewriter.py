"""What a rule builds its replacement with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from graphopt.ir.graph import Attr, Graph, Node, Value


class Rewriter:
    """Inserts nodes right before the matched root, on behalf of the nodes it covers.

    `rw.op.Gemm(x, w, b, transB=1)` inserts a node of the standard domain and returns its output. If
    the rule then refuses, everything it inserted is taken back.
    """

    def __init__(self, root: Node, covered: Iterable[Node]) -> None:
        assert root.graph is not None
        self.root, self.graph = root, root.graph
        self.origin = tuple(dict.fromkeys(name for node in covered for name in node.origin))
        self.inserted: list[Node] = []
        self.op = _Emitter(self)

    def insert(
        self,
        op_type: str,
        inputs: Sequence[Value | None],
        attrs: dict[str, Attr] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
        origin: Iterable[str] | None = None,
        before: Node | None = None,
    ) -> Node:
        """Insert any node; see `Graph.insert`.

        Its origin is that of the match unless given, and it goes before the root unless told.
        """
        node = self.graph.insert(
            op_type,
            inputs,
            attrs,
            domain=domain,
            outputs=outputs,
            before=self.root if before is None else before,
            origin=self.origin if origin is None else origin,
        )
        self.inserted.append(node)
        return node

    def const(self, array: np.ndarray | Any, dtype: Any = None) -> Value:
        """A constant value."""
        return self.graph.constant(np.asarray(array, dtype))

    def ints(self, *elements: int) -> Value:
        """An int64 vector constant, as axes, shapes and starts want it."""
        return self.graph.constant(np.array(elements, dtype=np.int64))

    def take_back(self) -> None:
        """Erase what was inserted (the rule refused)."""
        for node in reversed(self.inserted):
            node.graph.erase(node)  # type: ignore[union-attr]
        self.inserted.clear()


class _Emitter:
    def __init__(self, rewriter: Rewriter) -> None:
        self._rewriter = rewriter

    def __getattr__(self, op_type: str) -> Callable[..., Value]:
        def emit(*inputs: Value | None, **attrs: Attr) -> Value:
            return self._rewriter.insert(op_type, inputs, attrs).output

        return emit


def erase_dead(graph: Graph, nodes: Iterable[Node]) -> int:
    """Erase those of `nodes` that nobody reads, and then what only they read; returns how many."""
    pending, count = list(nodes), 0
    while pending:
        node = pending.pop()
        if node.graph is None or any(value.uses for value in node.outputs):
            continue
        read = [value.producer for value in node.inputs if value is not None]
        for subgraph in node.subgraphs:
            read += [v.producer for inner in subgraph.walk() for v in inner.inputs if v is not None]
            read += [value.producer for value in subgraph.outputs]
        node.graph.erase(node)
        count += 1
        pending.extend(producer for producer in read if producer is not None)
    return count
