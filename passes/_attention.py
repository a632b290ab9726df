"""Parts of attention: the rows that heads are columns of, scores, and what is made of these."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.passes._views import Atom, View, factor_of, views_of, whole
from graphopt.rewrite import Rewriter


@dataclass(frozen=True)
class Heads:
    """Columns of all heads in `rows`, [batch, time, …], or [time, batch, …] if `turned`."""

    rows: Value
    turned: bool
    first: int
    heads: int
    dim: int
    scale: float

    @property
    def batch(self) -> Dim:
        return self.rows.tensor.dims[1 if self.turned else 0]

    def batch_first(self, rw: Rewriter) -> Value:
        return rw.op.Transpose(self.rows, perm=[1, 0, 2]) if self.turned else self.rows


def heads_of(value: Value, perm: tuple[int, ...]) -> Heads | None:
    """`value`, whose axes in the order `perm` are [batch, heads, time, dim] or without heads."""
    found = [_as_heads(view.permuted(perm), value, perm) for view in views_of(value)]
    return next((heads for heads in reversed(found) if heads is not None), None)


def _as_heads(view: View, value: Value, perm: tuple[int, ...]) -> Heads | None:
    dims = [value.tensor.dims[axis] for axis in perm]
    dim, time = dims[-1], dims[-2]
    if view.source.rank != 3 or not isinstance(dim, int) or any(view.starts[:2]):
        return None
    batch = view.axes[0]
    groups = view.axes[1] if len(dims) == 4 else tuple(a for a in batch if a.axis == 2)
    if len(dims) == 3:
        batch = batch[: len(batch) - len(groups)]
    count = groups[0].extent if groups else 1
    if not isinstance(count, int) or view.axes[-1] != whole(2, dim):
        return None
    if groups != ((Atom(2, count, dim),) if count > 1 else ()):
        return None
    for turned in (False, True):
        order: list[Dim] = list(view.source.tensor.dims[:2])
        first, second = (1, 0) if turned else (0, 1)
        loops = (whole(first, order[first]), whole(second, order[second]))
        if (batch, view.axes[-2]) == loops and order[second] == time:
            return Heads(view.source, turned, view.starts[2], count, dim, view.scale)
    return None


@dataclass(frozen=True)
class Mask:
    """`number` where `where` is `chosen`, and the scores elsewhere."""

    where: Value
    chosen: bool
    number: float

    def as_bias(self, rw: Rewriter) -> Value:
        """What does the same when it is added: see `ABSORBING`."""
        return self.beside(rw, 0.0)

    def beside(self, rw: Rewriter, other: float) -> Value:
        """`number` where it is chosen, and `other` elsewhere."""
        sides = (self.number, other) if self.chosen else (other, self.number)
        if self.where.const is not None:
            return rw.const(np.where(self.where.const, *map(np.float32, sides)))
        return rw.op.Where(self.where, *(rw.const(np.float32(side)) for side in sides))


ABSORBING = -1e9
"""From here on the sum of a mask and a score below 32 is the mask again in float32, so that scores
may be added to it instead of replaced: even where all keys are masked, all shares are the same."""


@dataclass(frozen=True)
class Scores:
    """`q k * scale + bias`, k being turned already, and then masked."""

    q: Value
    k: Value
    scale: float
    bias: Value | None
    mask: Mask | None


def scores_of(value: Value, readers: int = 1) -> Scores | str:
    """`value` as scores of queries and keys, or why it is not; each part read only here.

    Args:
        readers: how often what they are needed for reads the scores.
    """
    bias, mask, scale, node = None, None, 1.0, value.producer
    while node is not None and node.op in ("Add", "Mul", "Div", "Where"):
        if len(node.output.uses) > readers:
            return "its scores are also read elsewhere"
        readers = 1
        scaled = factor_of(node)
        if scaled is not None:
            value, scale = scaled[0], scale * scaled[1]
        elif node.op == "Where":
            masked = _masked(node, scale)
            if masked is None or mask is not None or bias is not None:
                return "its scores are replaced by other numbers than one of -1e9 or less, once"
            value, mask = masked
        elif node.op == "Add" and bias is None and scale == 1.0:
            a, b = node.inputs
            assert a is not None and b is not None
            value, bias = (b, a) if _are_scores(b) else (a, b)
            if value.type != node.output.type:
                return "the bias is larger than the scores"
        else:
            return "its scores are more than scaled and added to once"
        node = value.producer
    if node is None or node.op != "MatMul" or len(value.uses) > readers:
        return "its scores are no product that is read only there"
    q, k = node.inputs
    assert q is not None and k is not None
    return Scores(q, k, scale, bias, mask)


def _masked(node: Node, scale: float) -> tuple[Value, Mask] | None:
    """What a Where masks, and how, if an infinite or very large negative number takes its place."""
    where, a, b = node.inputs
    assert where is not None and a is not None and b is not None
    for chosen, number, scores in ((True, a, b), (False, b, a)):
        if number.const is None or number.const.size != 1 or scores.type != node.output.type:
            continue
        if number.const.item() * scale <= ABSORBING:
            return scores, Mask(where, chosen, number.const.item() * scale)
    return None


def _are_scores(value: Value) -> bool:
    node = value.producer
    return (
        node is not None
        and node.op in ("MatMul", "Mul", "Div", "Where")
        and not isinstance(scores_of(value), str)
    )


@dataclass(frozen=True)
class Shares:
    """Scores of which an activation is taken one by one, and then multiplied.

    Attributes:
        readers: how often the activation reads the scores.
        steps: the multiplications, the first one first: ops, and which operand goes on.
    """

    scores: Value
    activation: str
    readers: int
    steps: tuple[tuple[Node, Value], ...] = ()

    def factor(self, rw: Rewriter) -> Value | None:
        """What the activations are multiplied by, None for 1."""
        factors = [_factor(rw, node, part) for node, part in self.steps]
        return reduce(rw.op.Mul, factors) if factors else None


def shares_of(value: Value) -> Shares | None:
    """`value` as such shares, None if it is something else; each part of it read only here."""
    node = value.producer
    found = None if node is None else _activated(node)
    if node is None or found is not None:
        return found
    for part in _multiplied(node):
        alone = part.type == value.type and len(part.uses) == 1
        inner = shares_of(part) if alone else None
        if inner is not None:
            return replace(inner, steps=(*inner.steps, (node, part)))
    return None


def _activated(node: Node) -> Shares | None:
    if node.op in ("Relu", "Sigmoid") and node.inputs[0] is not None:
        return Shares(node.inputs[0], node.op.lower(), 1)
    for scores, gates in (node.inputs, node.inputs[::-1]) if node.op == "Mul" else ():
        gate = None if gates is None or len(gates.uses) > 1 else gates.producer
        if scores and gate is not None and gate.op == "Sigmoid" and gate.inputs[0] is scores:
            return Shares(scores, "silu", 2)
    return None


def _multiplied(node: Node) -> list[Value]:
    """The operands that `node` may multiply by something, or set to 0 in places."""
    if node.op not in ("Div", "Mul", "Where"):
        return []
    a, b = node.operands[-2:]
    if node.op == "Where":
        return [x for x, y in ((a, b), (b, a)) if y.const is not None and not y.const.any()]
    return [a] if node.op == "Div" else [a, b]


def _factor(rw: Rewriter, node: Node, part: Value) -> Value:
    """What `node` multiplies `part` by."""
    *first, a, b = node.operands
    if node.op == "Where":
        return Mask(first[0], part is b, 0.0).beside(rw, 1.0)
    if node.op == "Div":
        return rw.op.Div(rw.const(np.ones(1, np.float32)), b)
    return b if part is a else a


def rows_of(value: Value) -> Heads | None:
    """`value` [batch, time, columns] as columns of other rows, if no transpose is needed."""
    width = value.tensor.dims[2]
    for view in reversed([*views_of(value)][1:]):
        if view.source.rank != 3 or view.scale != 1.0 or any(view.starts[:2]):
            continue
        a, b = view.source.tensor.dims[:2]
        for turned in [False, True][: 2 if 1 in (a, b) else 1]:
            loops = (whole(0, a), whole(1, b))[:: -1 if turned else 1]
            sizes = (b, a) if turned else (a, b)
            if view.axes == (*loops, whole(2, width)) and value.tensor.dims[:2] == sizes:
                return Heads(view.source, turned, view.starts[2], 1, 1, 1.0)
    return None
