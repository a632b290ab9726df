"""Layers times a sigmoid of themselves, however it is written: Swish, and DIN's Dice.

    z * (a + b * Sigmoid(c * z + d)), with constants a to d for each column

(Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", 2018: `a` is the slope of
Dice, `b` is 1 - a, and c and d normalize z.)
"""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.activations import activated, layer, per_column

x, y, c = var("x"), var("y"), const("c")
Terms = dict[tuple[int, int], np.ndarray]
"""A sum of c * z**i * p**j: by (i, j) the constants c, float64, one for each column or for all."""
_MOST_NODES = 12
"""Written out, Dice has 9; what is longer is something else."""


class _Reader:
    """Multiplies out what ops compute of one layer z and one sigmoid p of it.

    Attributes:
        z, p: these two, once they are found.
        inner: c * z + d, of which p is the sigmoid.
        nodes: the ops.
    """

    def __init__(self, root: Node) -> None:
        self.root = root
        self.z: Value | None = None
        self.p: Value | None = None
        self.inner: Terms = {}
        self.nodes: dict[Node, None] = {}

    def terms(self, value: Value | None) -> Terms | None:
        """None if there is something else in it."""
        node = None if value is None else value.producer
        if value is None or len(self.nodes) > _MOST_NODES:
            return None
        if node is None:
            row = per_column(value, self.root.output)
            return None if row is None else {(0, 0): row.astype(np.float64)}
        if node.op == f"{DOMAIN}::Dense":
            self.z = self.z or value
            return {(1, 0): np.ones(1)} if value is self.z else None
        self.nodes[node] = None
        if node.op == "Sigmoid":
            return self._sigmoid(value, node)
        if node.op not in ("Add", "Sub", "Mul"):
            return None
        first = self.terms(node.inputs[0])
        second = None if first is None else self.terms(node.inputs[1])
        if first is None or second is None:
            return None
        return _product(first, second) if node.op == "Mul" else _sum(first, second, node.op)

    def _sigmoid(self, value: Value, node: Node) -> Terms | None:
        if self.p is None:
            found = self.terms(node.inputs[0])
            if found is None or not set(found) <= {(1, 0), (0, 0)}:
                return None
            self.p, self.inner = value, found
        return {(0, 1): np.ones(1)} if value is self.p else None

    def is_read_elsewhere(self) -> bool:
        """True if others read what the ops compute on the way, or the layer."""
        inner = [node.output for node in self.nodes if node is not self.root]
        inner += [] if self.z is None else [self.z]
        return any(use.user not in self.nodes for value in inner for use in value.uses)


def _sum(first: Terms, second: Terms, op_type: str) -> Terms:
    found = dict(first)
    for powers, factor in second.items():
        found[powers] = found.get(powers, np.zeros(1)) + (factor if op_type == "Add" else -factor)
    return found


def _product(first: Terms, second: Terms) -> Terms | None:
    found: Terms = {}
    for (i, j), a in first.items():
        for (k, m), b in second.items():
            found[i + k, j + m] = found.get((i + k, j + m), np.zeros(1)) + a * b
    return found if set(found) <= {(i, j) for i in (0, 1) for j in (0, 1)} else None


@rule(op.Mul(x, y), op.Add(x, y))
def gate_to_dense(rw: Rewriter, node: Node) -> Value | NoMatch | None:
    """z * (a + b * Sigmoid(c * z + d)) of z = Dense(…) -> Dense(…, activation="gated")"""
    reader = _Reader(node)
    found = reader.terms(node.output)
    z = reader.z
    if found is None or z is None or reader.p is None:
        return None
    if any(row.any() for powers, row in found.items() if powers[0] == 0):
        return NoMatch("it is no multiple of the layer")
    if z.type != node.output.type or reader.is_read_elsewhere():
        return NoMatch("a value on the way is also read elsewhere, or has another shape")
    parts = [found.get((1, 0)), found.get((1, 1)), reader.inner.get((1, 0))]
    parts.append(reader.inner.get((0, 0)))
    columns = z.tensor.dims[-1]
    rows = [np.broadcast_to(0.0 if part is None else part, columns) for part in parts]  # type: ignore
    rw.origin = tuple(dict.fromkeys(name for n in reader.nodes for name in n.origin))
    if all((row == value).all() for row, value in zip(rows, (0, 1, 1, 0))):
        return activated(rw, z, "silu", len(z.uses))
    return activated(rw, z, "gated", len(z.uses), columns=np.stack(rows).astype(np.float32))


@rule(op.Mul(layer, c))
def scale_of_gate(rw: Rewriter, z: Value, c: Value) -> Value | NoMatch:
    """c * Dense(…, activation="gated") -> Dense(…, activation="gated"), its constants scaled"""
    gated, row = z.producer, per_column(c, z)
    assert gated is not None
    if gated.attrs.get("activation") != "gated" or row is None:
        return NoMatch("it is no gate that is scaled by column")
    if len(gated.attrs.get("steps", ())) > gated.attrs["before"]:
        return NoMatch("an operand comes between")
    columns = gated.attrs["columns"] * np.stack([row, row, np.ones_like(row), np.ones_like(row)])
    attrs = {**gated.attrs, "columns": columns.astype(np.float32)}
    return rw.insert("Dense", gated.inputs, attrs, domain=DOMAIN).output


RULES = (gate_to_dense, scale_of_gate)
