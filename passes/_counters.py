"""Numbers that a loop counts with."""

from __future__ import annotations

from typing import NamedTuple

from graphopt.ir.graph import Graph, Node, Value
from graphopt.passes._shapes import ints_of

_NUMBERS = ("int32", "int64", "float32", "float64")
WHOLE = ("int32", "int64")  # where nobody counts so far that it overflows


def first_count(loop: Node, value: Value) -> int | None:
    """What a number is in the first step, if it is one more in each step that follows."""
    body: Graph = loop.attrs["body"]
    base, more = _sum(body, value)
    if base is body.inputs[0]:
        return more
    if base not in body.inputs[2:] or base.dtype not in WHOLE:
        return None
    place = body.inputs.index(base)
    start = whole_number(loop.inputs[place])
    grows = _sum(body, body.outputs[place - 1]) == (base, 1)
    return start + more if start is not None and grows else None


def _sum(body: Graph, value: Value) -> tuple[Value, int]:
    """The number and the constant that `value` is the sum of, computed in the body."""
    more = 0
    while (node := value.producer) is not None and node.graph is body:
        a, b = node.input(0), node.input(1)
        if node.op == "Add" and whole_number(a) is not None:
            a, b = b, a
        known = whole_number(b)
        if node.op in ("Add", "Sub") and known is not None:
            more += known if node.op == "Add" else -known
        elif not keeps_count(node):
            break
        assert a is not None
        value = a
    return value, more


def keeps_count(node: Node) -> bool:
    """True for an Identity or a Cast of a whole number to another form of it."""
    kinds = [value.dtype for value in (*node.inputs, *node.outputs) if value is not None]
    if node.op == "Cast":
        return kinds[0] in WHOLE and kinds[1] in (*WHOLE, "float32", "float64")
    return node.op == "Identity"


def whole_number(value: Value | None) -> int | None:
    """A whole number that is known, whatever its dtype."""
    if value is None:
        return None
    if value.const is not None and value.const.size == 1 and value.dtype.startswith("float"):
        number = float(value.const.item())
        return int(number) if number.is_integer() else None
    known = ints_of(value)
    return known[0] if known is not None and len(known) == 1 else None


_SAME_ORDER = ("Reshape", "Squeeze", "Unsqueeze")


def element(value: Value, k: int) -> Value | None:
    """The value of one element that is element `k` of a vector joined of values."""
    while value.tensor.elements != 1:
        node = value.producer
        if node is None:
            return None
        if node.op in _SAME_ORDER or keeps_count(node):
            value = node.operands[0]
            continue
        parts = node.operands
        sizes = [n for part in parts if isinstance(n := part.tensor.elements, int)]
        if node.op != "Concat" or value.rank != 1 or len(sizes) != len(parts):
            return None
        place = 0
        while k >= sizes[place]:
            k, place = k - sizes[place], place + 1
        value = parts[place]
    while (node := value.producer) is not None and node.op in _SAME_ORDER:
        value = node.operands[0]
    return value


def counted_from(node: Node, value: Value | None) -> int | None:
    """`first_count` of a number that `node` reads, in whichever loop around it counts it."""
    graph = node.graph
    while value is not None and graph is not None:
        owner = graph.owner
        first = first_count(owner, value) if owner is not None and owner.op == "Loop" else None
        if first is not None:
            return first
        graph = graph.parent
    return None


class Number(NamedTuple):
    """A constant, or where a counter starts."""

    value: float
    counts: bool


def greatest_of(node: Node, value: Value | None, k: int) -> list[Number]:
    """The numbers that element `k`, which `node` reads, is the greatest of; [] if not known.

    A cast of them overflows where nobody counts to, and keeps what is less than another.
    """
    if value is None or value.const is not None:
        return [] if value is None else [Number(float(value.const.reshape(-1)[k]), False)]  # type: ignore[union-attr]
    producer = value.producer
    if producer is not None and producer.op == "Cast" and value.dtype in _NUMBERS:
        return greatest_of(node, producer.inputs[0], k)
    if producer is not None and producer.op == "Max":
        places = [
            (part, 0 if part and part.tensor.elements == 1 else k) for part in producer.inputs
        ]
        found = [greatest_of(node, *place) for place in places]
        return [number for numbers in found for number in numbers] if all(found) else []
    one = element(value, k)
    if one is not None and one.const is not None:
        return [Number(float(one.const.item()), False)]
    first = counted_from(node, one)
    return [] if first is None else [Number(first, True)]
