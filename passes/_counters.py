"""Numbers that a loop counts with."""

from __future__ import annotations

from graphopt.ir.graph import Graph, Node, Value
from graphopt.passes._shapes import ints_of

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
