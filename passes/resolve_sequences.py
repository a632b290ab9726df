"""Sequences of tensors whose construction is known, taken apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.passes._inline import replace
from graphopt.passes._shapes import ints_of
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite.rewriter import Rewriter

Known = dict[Value, list[Value]]
MAX_PARTS = 256
"""A sequence of more parts than this is left as it is."""


class ResolveSequences(Pass):
    """Replaces reads of a sequence by the tensors in it, where its whole construction is known.

    Needs positions that are known. Exporters collect results in sequences: `SequenceEmpty →
    SequenceInsert → … → ConcatFromSequence`. Once loops are unrolled every element is a value of
    the graph. What is split into a sequence of parts of known number becomes a Split. Fidelity:
    exact.

    Before:
        (float[N,2] x) => (float[N,4] y) {
            none = SequenceEmpty()
            a = Relu(x)
            one = SequenceInsert(none, a)
            b = Neg(x)
            two = SequenceInsert(one, b)
            y = ConcatFromSequence<axis=1>(two)
        }

    After:
        (float[N,2] x) => (float[N,4] y) {
            a = Relu(x)
            b = Neg(x)
            y = Concat<axis=1>(a, b)
        }
    """

    name = "resolve-sequences"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        known: Known = {}
        before = sum(ctx.stats.hits.values())
        for node in graph.walk():
            if node.op in _BUILDERS:
                elements = _BUILDERS[node.op](node, known)
                if elements is not None:
                    known[node.output] = elements
                    continue
            elif node.op not in _READERS:
                continue
            elif node.inputs[0] in known:
                result = _READERS[node.op](node, known[node.inputs[0]])
                if result is not None:
                    replace(node, [result])
                    ctx.stats.hits["read_to_element"] += 1
                    continue
            ctx.stats.refuse("resolve_sequence", node, "its elements are not known")
        return sum(ctx.stats.hits.values()) > before


def _inserted(node: Node, known: Known) -> list[Value] | None:
    sequence, tensor = node.inputs[0], node.inputs[1]
    position = ints_of(node.input(2)) if node.input(2) is not None else [0]
    if sequence not in known or tensor is None or not position:
        return None
    elements = list(known[sequence])
    if node.input(2) is None:
        return [*elements, tensor]
    if not -len(elements) <= position[0] <= len(elements):
        return None
    elements.insert(position[0], tensor)
    return elements


def _erased(node: Node, known: Known) -> list[Value] | None:
    position = ints_of(node.input(1)) if node.input(1) is not None else [-1]
    elements = list(known.get(node.operands[0], ()))
    if not position or not -len(elements) <= position[0] < len(elements):
        return None
    del elements[position[0]]
    return elements


def _split(node: Node, known: Known) -> list[Value] | None:
    """The parts that the sequence consists of, if all that read it can do without it."""
    x, axis = node.inputs[0], node.attr("axis", 0)
    sizes = _part_sizes(node)
    if x is None or sizes is None or not all(_is_read_at(u.user) for u in node.output.uses):
        return None
    rewriter = Rewriter(node, [node])
    parts = rewriter.insert(
        "Split", [x, rewriter.ints(*sizes)], {"axis": axis}, outputs=len(sizes)
    ).outputs
    if node.input(1) is None and not node.attr("keepdims", 1):
        return [rewriter.op.Squeeze(part, rewriter.ints(axis)) for part in parts]
    return list(parts)


def _part_sizes(node: Node) -> list[int] | None:
    """How long the parts of a SplitToSequence are: as it says, all alike, or 1."""
    x, split = node.inputs[0], node.input(1)
    shape = x.shape if x is not None else None
    length = shape[node.attr("axis", 0)] if shape else None
    given = [1] if split is None else ints_of(split)
    if not isinstance(length, int) or not given or min(given) < 1:
        return None
    if split is not None and split.rank == 1:
        return given if sum(given) == length else None
    if split is not None and split.rank != 0:
        return None
    whole, rest = divmod(length, given[0])
    count = whole + (rest > 0)
    return [given[0]] * whole + [rest] * (rest > 0) if 0 < count <= MAX_PARTS else None


def _is_read_at(user: Node | Graph) -> bool:
    if not isinstance(user, Node) or user.op not in _READERS:
        return False
    return user.op != "SequenceAt" or bool(ints_of(user.inputs[1]))


def _element(node: Node, elements: list[Value]) -> Value | None:
    position = ints_of(node.inputs[1])
    if not position or not -len(elements) <= position[0] < len(elements):
        return None
    return elements[position[0]]


def _length(node: Node, elements: list[Value]) -> Value:
    assert node.graph is not None
    return node.graph.constant(np.array(len(elements), np.int64))


def _concatenated(node: Node, elements: list[Value]) -> Value | None:
    if not elements:
        return None
    rewriter, axis = Rewriter(node, [node]), node.attr("axis")
    if node.attr("new_axis"):
        elements = [rewriter.op.Unsqueeze(value, rewriter.ints(axis)) for value in elements]
    return rewriter.op.Concat(*elements, axis=axis)


_BUILDERS: dict[str, Callable[[Node, Known], list[Value] | None]] = {
    "SequenceEmpty": lambda node, known: [],
    "SequenceConstruct": lambda node, known: node.operands,
    "SequenceInsert": _inserted,
    "SequenceErase": _erased,
    "SplitToSequence": _split,
}
_READERS: dict[str, Callable[[Node, list[Value]], Value | None]] = {
    "SequenceAt": _element,
    "SequenceLength": _length,
    "ConcatFromSequence": _concatenated,
}
