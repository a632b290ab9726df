"""Patterns: expressions of ops and variables, matched against the graph from the root upwards.

    x, w, b = var("x"), const("w"), const("b")

    @rule(op.Add(op.MatMul(x, w), b))
    def matmul_add_to_gemm(rw: Rewriter, x: Value, w: Value, b: Value) -> Value | NoMatch: ...

A variable used twice must be the same value both times. An inner value must have no reader outside
the pattern, unless it is `.shared()`. Commutative ops match both ways round.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import EllipsisType
from typing import Any, Union

import numpy as np

from graphopt.ir import schema
from graphopt.ir.graph import Node, Value


@dataclass(frozen=True)
class NoMatch:
    """Why a rule does not apply to something that looks like its pattern."""

    reason: str


@dataclass(frozen=True)
class Variable:
    """Matches any value (`only_const`: any constant) and gives it a name."""

    name: str
    only_const: bool = False


@dataclass(frozen=True)
class Pattern:
    """An op applied to patterns; made by `op.Name(...)`.

    Attributes:
        operands: patterns of the inputs, in order; a final `...` allows any further inputs.
        attrs: attributes that must be equal, defaults included.
        name: a variable for the op's first output.
        may_share: whether others may read the output too.
    """

    op_type: str
    operands: tuple[Operand, ...]
    attrs: tuple[tuple[str, Any], ...] = ()
    domain: str = ""
    name: str = ""
    may_share: bool = False

    def named(self, name: str) -> Pattern:
        """The same pattern, its value bound to a variable."""
        return replace(self, name=name)

    def shared(self) -> Pattern:
        """The same pattern, allowing readers outside the match."""
        return replace(self, may_share=True)


Operand = Union[Pattern, Variable, EllipsisType]
Result = Union[Value, Sequence[Value], NoMatch, None]


class _Ops:
    """`op.Gemm(x, w)` is a pattern; unknown op names fail when the rule is defined."""

    def __getattr__(self, op_type: str) -> Callable[..., Pattern]:
        if schema.find(op_type, "", schema.newest_opset()) is None:
            raise AttributeError(f"no op {op_type!r} in ai.onnx")

        def build(*operands: Operand, **attrs: Any) -> Pattern:
            return Pattern(op_type, operands, tuple(sorted(attrs.items())))

        return build


op = _Ops()


def var(name: str) -> Variable:
    """A variable for any value."""
    return Variable(name)


def const(name: str) -> Variable:
    """A variable for constants only."""
    return Variable(name, only_const=True)


@dataclass(frozen=True)
class Rule:
    """A named rewrite: where one of `patterns` matches, `build` makes the replacement."""

    name: str
    patterns: tuple[Pattern, ...]
    build: Callable[..., Result]
    parameters: tuple[str, ...] = field(default=())

    @property
    def doc(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.build) or "").split("\n", 1)[0]


def rule(*patterns: Pattern) -> Callable[[Callable[..., Result]], Rule]:
    """Make a function a rule.

    The function takes a `Rewriter`, then any of the patterns' variables by name, and `node` for the
    matched root. It returns the value that replaces the root's output (a sequence for several
    outputs), `NoMatch(reason)`, or None where there is nothing to explain.
    """

    def wrap(build: Callable[..., Result]) -> Rule:
        names = tuple(inspect.signature(build).parameters)[1:]
        return Rule(build.__name__, patterns, build, names)

    return wrap


@dataclass
class Match:
    """A place where a pattern fits: values of its variables and the nodes it covers.

    `shared` holds those of the nodes whose values may have other readers.
    """

    root: Node
    values: dict[str, Value] = field(default_factory=dict)
    nodes: dict[Node, None] = field(default_factory=dict)
    shared: set[Node] = field(default_factory=set)

    def copy(self) -> Match:
        return Match(self.root, dict(self.values), dict(self.nodes), set(self.shared))


def match(pattern: Pattern, root: Node) -> Match | NoMatch | None:
    """How `pattern` fits at `root`: None if it does not, NoMatch if only sharing forbids it."""
    shared: Value | None = None
    for found in _match_node(pattern, root, Match(root)):
        outside = _shared_inner_value(found)
        if outside is None:
            return found
        shared = outside
    if shared is None:
        return None
    return NoMatch(f"{shared.name!r} inside the pattern is also read elsewhere")


def _shared_inner_value(found: Match) -> Value | None:
    for node in found.nodes:
        if node is found.root or node in found.shared:
            continue
        for value in node.outputs:
            if any(use.user not in found.nodes for use in value.uses):
                return value
    return None


def _match_node(pattern: Pattern, node: Node, so_far: Match) -> Iterator[Match]:
    if (node.op_type, node.domain) != (pattern.op_type, pattern.domain):
        return
    if any(not _attr_equals(node.attr(name), wanted) for name, wanted in pattern.attrs):
        return
    start = so_far.copy()
    start.nodes[node] = None
    if pattern.may_share:
        start.shared.add(node)
    if pattern.name:
        start.values[pattern.name] = node.output
    for operands in _operand_orders(pattern, node):
        yield from _match_operands(operands, node.inputs, start)


def _operand_orders(pattern: Pattern, node: Node) -> list[tuple[Operand, ...]]:
    operands = pattern.operands
    open_ended = bool(operands) and operands[-1] is ...
    fixed = operands[:-1] if open_ended else operands
    if len(node.inputs) < len(fixed) or (not open_ended and len(node.inputs) > len(fixed)):
        return []
    if len(fixed) == 2 and pattern.op_type in schema.COMMUTATIVE and not pattern.domain:
        return [fixed, fixed[::-1]]
    return [fixed]


def _match_operands(
    operands: Sequence[Operand], values: Sequence[Value | None], so_far: Match
) -> Iterator[Match]:
    if not operands:
        yield so_far
        return
    first, value = operands[0], values[0]
    if value is None:
        return
    if isinstance(first, Pattern):
        if value.producer is None or value is not value.producer.output:
            return
        for found in _match_node(first, value.producer, so_far):
            yield from _match_operands(operands[1:], values[1:], found)
        return
    assert isinstance(first, Variable)
    if first.only_const and value.const is None:
        return
    if so_far.values.get(first.name, value) is not value and not _same_constant(
        so_far.values[first.name], value
    ):
        return
    found = so_far.copy()
    found.values[first.name] = value
    yield from _match_operands(operands[1:], values[1:], found)


def _same_constant(a: Value, b: Value) -> bool:
    return a.const is not None and b.const is not None and a.const is b.const


def _attr_equals(found: Any, wanted: Any) -> bool:
    if isinstance(found, np.ndarray) or isinstance(wanted, np.ndarray):
        return np.array_equal(found, wanted)
    if isinstance(found, (list, tuple)) and isinstance(wanted, (list, tuple)):
        return list(found) == list(wanted)
    return bool(found == wanted)
