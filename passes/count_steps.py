"""Loops that count their steps in a condition, as loops that are told how many there are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.ir.dims import is_nonnegative
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import dtype_to_onnx
from graphopt.passes._counters import WHOLE, first_count, keeps_count, whole_number
from graphopt.passes._shapes import ints_of
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite.rewriter import Rewriter, erase_dead

RULE = "condition_to_count"
_NO_LIMIT = 2**31 - 1  # what exporters give as a trip count where there is none
_LESS = {"Less": (0, 0), "LessOrEqual": (0, 1), "Greater": (1, 0), "GreaterOrEqual": (1, 1)}


class CountSteps(Pass):
    """Gives a Loop the trip count that its condition counts to.

    Needs a condition that compares a number that grows by one in each step, from a constant on,
    with one that stays the same. Conditions may be joined by `And`; those that count nothing stay.
    Counted in float32, as tf2onnx does, steps are told apart up to 2^24. Fidelity: exact.

    Before:
        (float[N,T,4] x, float[N,4] h) => (float[N,4] y)
        <int64 none = {0}, int64 one = {1}, int64[1] first = {0}> {
            size = Shape<start=1, end=2>(x)
            n = Squeeze(size, first)
            some = Less(none, n)
            count, y = Loop("", some, none, h) <
                body = b (int64 i, bool c, int64 t, float[N,4] u)
                    => (bool c2, int64 next, float[N,4] v) {
                    row = Gather<axis=1>(x, t)
                    v = Add(u, row)
                    next = Add(t, one)
                    c2 = Less(next, n)
                }
            >
        }

    After:
        (float[N,T,4] x, float[N,4] h) => (float[N,4] y)
        <int64 none = {0}, int64 one = {1}, int64[1] first = {0}, bool yes = {1}> {
            size = Shape<start=1, end=2>(x)
            n = Squeeze(size, first)
            count, y = Loop(n, yes, none, h) <
                body = b (int64 i, bool c, int64 t, float[N,4] u)
                    => (bool c, int64 next, float[N,4] v) {
                    row = Gather<axis=1>(x, t)
                    v = Add(u, row)
                    next = Add(t, one)
                }
            >
        }
    """

    name = "count-steps"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        changed = False
        for node in graph.walk():
            if node.op == "Loop" and _count(node):
                ctx.stats.hits[RULE] += 1
                changed = True
        return changed


@dataclass
class _Count:
    """What bounds how many steps there are: `limit + more`, but one `at_least` where it says so."""

    limit: Value
    more: int
    at_least: bool = True


def _count(loop: Node) -> bool:
    body: Graph = loop.attrs["body"]
    ended = [body.outputs[0].producer]
    parts = [part for part in _parts(body.outputs[0]) if part is not body.inputs[1]]
    found = [(part, _counted(loop, part)) for part in parts]
    counts = [count for _, count in found if count is not None]
    if not counts:
        return False
    starts = _parts(loop.input(1))
    firsts = [_starting(part) for part in starts if ints_of(part) != [1]]
    for count in counts:
        for first in firsts:
            if first is not None and _same(first.limit, count.limit) and count.more >= first.more:
                count.at_least = False
    none = [count for count in counts if not count.at_least]
    needless = all(
        first is not None
        and any(_same(first.limit, c.limit) and c.more <= first.more for c in none)
        for first in firsts
    )
    rw = Rewriter(loop, [loop])
    trips = _least(rw, loop.input(0), counts)
    rest = [part for part, count in found if count is None]
    condition = rest[0] if rest else body.inputs[1]
    for part in rest[1:]:
        condition = body.insert("And", [condition, part], origin=loop.origin).output
    body.set_outputs([condition, *body.outputs[1:]])
    graph, start = rw.graph, loop.input(1)
    before = [] if start is None else [start.producer]
    if needless:
        graph.set_input(loop, 1, rw.const(np.array(True)))
    graph.set_input(loop, 0, trips)
    for owner, values in ((body, ended), (graph, before)):
        erase_dead(owner, [node for node in values if node is not None and node.graph is owner])
    return True


def _parts(condition: Value | None) -> list[Value]:
    """What must all hold so that a condition does."""
    if condition is None:
        return []
    node = condition.producer
    if node is None or node.op not in ("And", "Identity"):
        return [condition]
    return list(dict.fromkeys(part for value in node.inputs for part in _parts(value)))


def _counted(loop: Node, condition: Value) -> _Count | None:
    """How many steps `condition`, which a step computes for the next one, lets through."""
    compared = _compared(condition)
    if compared is None or condition.producer.graph is not loop.attrs["body"]:  # type: ignore[union-attr]
        return None
    small, large, equal = compared
    first, limit = first_count(loop, small), _constant(loop, large)
    return None if first is None or limit is None else _Count(limit, 1 - first + equal)


def _starting(condition: Value) -> _Count | None:
    """`limit + more` is positive just where `condition` holds."""
    compared = _compared(condition)
    number = None if compared is None else whole_number(compared[0])
    if compared is None or number is None:
        return None
    limit = _exact(compared[1])
    return _Count(limit, compared[2] - number) if limit.dtype in WHOLE else None


def _compared(condition: Value) -> tuple[Value, Value, int] | None:
    """(a, b, whether they may be equal) of a condition that a is less than b."""
    node = condition.producer
    if node is None or node.op not in _LESS:
        return None
    turned, equal = _LESS[node.op]
    small, large = node.inputs[turned], node.inputs[1 - turned]
    assert small is not None and large is not None
    return small, large, equal


def _constant(loop: Node, value: Value) -> Value | None:
    """What `value`, which a body reads, is around the loop, if that is an integer there."""
    body: Graph = loop.attrs["body"]
    value = _exact(value)
    while value in body.inputs:
        place = body.inputs.index(value)
        given = loop.input(place) if place >= 2 else None
        if given is None or body.outputs[place - 1] is not value:
            return None
        value = _exact(given)
    number = whole_number(value)
    if value.const is not None and number is not None:
        return body.constant(np.array(number))
    inside = value.producer is not None and value.producer.graph is body
    return None if inside or value.dtype not in WHOLE else value


def _exact(value: Value) -> Value:
    """What was cast to `value`, by casts that lose nothing."""
    while (node := value.producer) is not None and keeps_count(node) and value.dtype != "int32":
        (value,) = node.operands
    return value


def _same(a: Value, b: Value) -> bool:
    if a is b:
        return True
    if a.content is None or b.content is None:
        return False
    return bool(a.content.tolist() == b.content.tolist())


def _least(rw: Rewriter, trips: Value | None, counts: list[_Count]) -> Value:
    """The least of a trip count and of the counts of conditions."""
    known = ints_of(trips)
    if known is not None and known[0] >= _NO_LIMIT:
        trips = None
    kept = [] if trips is None else [_Count(_exact(trips), 0, at_least=False)]
    for count in sorted(counts, key=lambda count: count.more):
        least = [c for c in kept if c.at_least <= count.at_least and c.more <= count.more]
        if not any(_same(c.limit, count.limit) for c in least):
            kept.append(count)
    values = [_steps(rw, count) for count in kept]
    return values[0] if len(values) == 1 else rw.op.Min(*values)


def _steps(rw: Rewriter, count: _Count) -> Value:
    value = count.limit
    if value.dtype != "int64":
        value = rw.op.Cast(value, to=dtype_to_onnx("int64"))
    if value.rank:
        value = rw.op.Reshape(value, rw.const(np.zeros(0, np.int64)))
    if count.more:
        value = rw.op.Add(value, rw.const(np.array(count.more, np.int64)))
    negative = value.content is not None and not is_nonnegative(value.content.item())
    if count.at_least or negative:  # results have as many rows, where it is a size
        value = rw.op.Max(value, rw.const(np.array(int(count.at_least), np.int64)))
    return value
