"""Searches for the bucket that a number falls into become a count of boundaries."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import dtype_to_onnx, is_float, is_integer
from graphopt.passes._evaluate import evaluate
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.rewrite.rewriter import Rewriter, erase_dead

_ARITHMETIC = frozenset(
    ["Abs", "Add", "And", "Cast", "Div", "Identity", "Max", "Min", "Mod", "Mul", "Neg", "Not"]
    + ["Or", "Sub", "Where", "Xor"]
)
_COMPARISONS = frozenset(["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
_COUNTS = (("Less", True), ("LessOrEqual", True), ("GreaterOrEqual", False), ("Greater", False))
"""Comparisons of a boundary with the number; False where those that fail it are counted, which
differs for NaN."""
MAX_BOUNDARIES = 512
"""Above, a search takes fewer steps than a comparison with each."""


@dataclass
class _Search:
    """What computes whole numbers from one float by comparing it with elements of a table.

    Attributes:
        nodes: in any order.
        tables: the constants that it looks boundaries up in.
    """

    result: Value
    number: Value | None = None
    nodes: set[Node] = field(default_factory=set)
    tables: list[np.ndarray] = field(default_factory=list)

    def refusal(self) -> str | None:
        """Why it is no such thing, None if it is; fills the other attributes."""
        pending = [self.result]
        while pending:
            value = pending.pop()
            if value.const is not None and value.const.size == 1:
                continue
            node = value.producer
            if node is None or value.shape != self.result.shape:
                return "it depends on more than one number, element by element"
            if node in self.nodes or node.op == "ConstantOfShape":
                self.nodes.add(node)
                continue
            operands = self._operands(node)
            if operands is None:
                return f"{node.op} is no step of a search"
            self.nodes.add(node)
            pending += operands
        return None if len(self.tables) > 1 else "it looks up fewer than two boundaries"

    def _operands(self, node: Node) -> list[Value] | None:
        """What a step reads besides the number; None if it is none."""
        operands = node.operands
        if node.op == "Gather" and operands[0].const is not None and operands[0].rank == 1:
            self.tables.append(operands[0].const)
            return operands[1:]
        compared = node.op in _COMPARISONS
        if not compared and (node.op not in _ARITHMETIC or is_float(node.output.dtype)):
            return None
        floats = [value for value in operands if is_float(value.dtype)]
        if not floats:
            return operands
        boundaries = [v for v in floats if v.producer is not None and v.producer.op == "Gather"]
        numbers = [value for value in floats if value not in boundaries[:1]]
        if not compared or len(boundaries) < 1 or len(numbers) != 1:
            return None
        self.number = self.number or numbers[0]
        same = numbers[0] is self.number and self.number.shape == self.result.shape
        return boundaries[:1] if same else None

    def found_for(self, numbers: np.ndarray) -> np.ndarray | str:
        """Its result for each of these numbers, or why it has none."""
        known: dict[Value, np.ndarray] = {}
        assert self.result.producer is not None and self.result.producer.graph is not None
        for node in self.result.producer.graph.nodes:
            if node not in self.nodes:
                continue
            if node.op == "ConstantOfShape":
                fill = node.attr("value")
                assert fill is not None
                known[node.output] = np.broadcast_to(fill.reshape(-1), numbers.shape)
                continue
            operands: list[np.ndarray | None] = [
                numbers if value is self.number else known.get(value, value.const)  # type: ignore[arg-type,union-attr]
                for value in node.inputs
            ]
            results = evaluate(node, operands)
            if isinstance(results, str):
                return results
            known[node.output] = results[0]
        return known[self.result]


def _samples(boundaries: np.ndarray) -> np.ndarray:
    """Each boundary, a number on either side of it, the infinities and NaN.

    What only compares a number with boundaries gives one result between two neighbours, so these
    stand for all numbers.
    """
    infinity = boundaries.dtype.type(np.inf)
    below, above = np.nextafter(boundaries, -infinity), np.nextafter(boundaries, infinity)
    ends = np.array([-np.inf, np.inf, np.nan], boundaries.dtype)
    return np.concatenate([boundaries, below, above, ends])


def _count_of(search: _Search) -> tuple[str, bool] | str:
    """The entry of `_COUNTS` that gives the same for all numbers, or why there is none."""
    table = search.tables[0]
    if any(other is not table for other in search.tables):
        return "its boundaries come from different tables"
    if table.dtype.kind != "f" or np.isnan(table).any():
        return "its boundaries are not numbers that NumPy knows"
    if table.size > MAX_BOUNDARIES:
        return f"it has {table.size} boundaries, more than {MAX_BOUNDARIES}"
    numbers = _samples(table)
    found = search.found_for(numbers)
    if isinstance(found, str):
        return found
    for op, holds in _COUNTS:
        compare = {"Less": np.less, "LessOrEqual": np.less_equal, "Greater": np.greater}
        marks = compare.get(op, np.greater_equal)(table, numbers[:, None])
        if np.array_equal(found, np.sum(marks == holds, axis=1)):
            return op, holds
    return "its result is not the number of boundaries below"


def _counted(search: _Search, op: str, holds: bool) -> Value:
    """The count, which as a sum of floats is exact and faster than one of integers."""
    node, number, table = search.result.producer, search.number, search.tables[0]
    assert node is not None and number is not None
    rw = Rewriter(node, search.nodes)
    marks = getattr(rw.op, op)(rw.const(table), rw.op.Unsqueeze(number, rw.ints(-1)))
    ones = rw.op.Cast(marks, to=1)
    total = rw.op.Cast(
        rw.op.ReduceSum(ones, rw.ints(-1), keepdims=0), to=dtype_to_onnx(search.result.dtype)
    )
    size = rw.const(np.array(table.size, search.result.dtype))
    return total if holds else rw.op.Sub(size, total)


def _compares_elements(graph: Graph) -> bool:
    """Whether elements of a constant vector are looked up and compared, as any search does."""
    users = [
        use.user
        for node in graph.nodes
        if node.op == "Gather" and node.const(0) is not None and node.operands[0].rank == 1
        for use in node.output.uses
    ]
    return any(isinstance(user, Node) and user.op in _COMPARISONS for user in users)


class RaiseBuckets(Pass):
    """Replaces searches for the bucket of a number by a count of the boundaries below it.

    Needs whole numbers that follow, element by element, from how one float compares with elements
    of one constant vector. Exporters write out each step of such a search. Two numbers between the
    same boundaries compare alike, so the steps are computed for each boundary, its neighbours, the
    infinities and NaN; if that gives the count there, it does so for every number. Fidelity: exact.

    Before:
        (float[N] x) => (int64[N] y) <
            float[3] b = {0.5, 1, 2}, int64 zero = {0}, int64 one = {1}, int64 two = {2},
            int64 three = {3}
        > {
            s = Shape(x)
            m = ConstantOfShape<value = int64[1] {1}>(s)
            e = Gather(b, m)
            c = GreaterOrEqual(e, x)
            low = Where(c, zero, two)
            f = Gather(b, low)
            d = GreaterOrEqual(f, x)
            next = Add(low, one)
            y = Where(d, low, next)
        }

    After:
        (float[N] x) => (int64[N] y) <
            float[3] b = {0.5, 1, 2}, int64[1] last = {-1}, int64 three = {3}
        > {
            u = Unsqueeze(x, last)
            c = GreaterOrEqual(b, u)
            f = Cast<to=1>(c)
            s = ReduceSum<keepdims=0>(f, last)
            above = Cast<to=7>(s)
            y = Sub(three, above)
        }
    """

    name = "raise-buckets"
    fidelity = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        if not _compares_elements(graph):
            return False
        changed, tried = False, set[Node]()
        for node in reversed(list(graph.nodes)):
            if node in tried or node.op not in _ARITHMETIC or not is_integer(node.output.dtype):
                continue
            search = _Search(node.output)
            if search.refusal() is not None:
                continue
            tried |= search.nodes
            count = _count_of(search)
            if isinstance(count, str):
                ctx.stats.refuse("search_to_count", node, count)
                continue
            graph.replace_uses(node.output, _counted(search, *count))
            erase_dead(graph, search.nodes)
            ctx.stats.hits["search_to_count"] += 1
            changed = True
        return changed
