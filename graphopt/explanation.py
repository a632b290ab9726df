"""What became of every node of a model: kept, fused into what, folded or removed, and by what.

Nodes carry the names of the source nodes that they stand for (`Node.origin`). Looking at these
after every pass tells which pass changed the lot of a source node; the rules' refusals tell why it
was left.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from graphopt import api
from graphopt.deployment import writing
from graphopt.ir.graph import Graph
from graphopt.pipeline.base import Pass
from graphopt.pipeline.report import PassRecord, Report
from graphopt.pipeline.spec import Pipeline
from graphopt.targets import base

# Nodes that stand for a source node, as (op, all source nodes that they stand for).
Standing = set[tuple[str, tuple[str, ...]]]


class Fate(enum.Enum):
    """What can become of a source node.

    KEPT: one op of its kind stands for it alone. FUSED: an op stands for it and others. REWRITTEN:
    other ops stand for it alone. FOLDED: it is a constant now. REMOVED: nothing is left of it.
    """

    KEPT = "kept"
    FUSED = "fused"
    REWRITTEN = "rewritten"
    FOLDED = "folded"
    REMOVED = "removed"


@dataclass(frozen=True)
class SourceNode:
    """One node of the source and its fate.

    Attributes:
        name: as in the file; that of its first output where it has none.
        inside: the node whose subgraph holds it, "" for the main graph.
        into: the ops that stand for it now.
        others: how many further source nodes these stand for.
        by: what changed its lot, in order: passes, and the target.
        reasons: `rule: reason` of rules that looked at it and left it; only if it was kept.
    """

    name: str
    op: str
    inside: str
    fate: Fate
    into: tuple[str, ...]
    others: int
    by: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """The fates of all nodes of a model.

    Attributes:
        pipeline: the passes that ran, as text.
        nodes: in the order of the source; constants are not nodes.
        left: how many nodes of each op the result has.
    """

    target: str
    pipeline: str
    nodes: tuple[SourceNode, ...]
    left: dict[str, int]

    def to_json(self) -> str:
        """Everything, as indented JSON."""
        data = dataclasses.asdict(self)
        for entry in data["nodes"]:
            entry["fate"] = entry["fate"].value
        return json.dumps(data, indent=2) + "\n"


def explain(
    model: api.Model,
    target: str = "cpu",
    *,
    passes: str | Pipeline | None = None,
    progress: Callable[[str], None] | None = None,
) -> Explanation:
    """Tell what `optimize` with these passes, and then `target`, make of each node of `model`.

    Nothing is compiled: what the target's code generator fuses further is not told.

    Raises:
        InvalidModelError, SpecError, UnsupportedOpError: as `compile` does.
    """
    report, trace = Report(), _Trace(progress or (lambda step: None))
    found = base.find(target)
    graph = api.optimize(model, passes=passes, report=report, instruments=[trace])
    trace.note(graph, "")
    trace.tell(target)
    graph = found.legalize(writing.suited(graph, found))
    trace.note(graph, target)
    return Explanation(
        target,
        report.facts["pipeline"],
        tuple(trace.fate_of(name, report) for name in trace.source),
        dict(Counter(node.op for node in graph.walk()).most_common()),
    )


@dataclass
class _Trace:
    """Follows source nodes through the passes, as an instrument.

    Attributes:
        source: op and enclosing node of each source node.
        now: the nodes that stand for it, as (op, all that they stand for).
        by: what changed that, in order.
    """

    tell: Callable[[str], None]
    source: dict[str, tuple[str, str]] = field(default_factory=dict)
    now: dict[str, Standing] = field(default_factory=dict)
    by: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def before_pass(self, step: Pass, graph: Graph) -> None:
        self.tell(step.name)
        if not self.source:
            self._begin(graph)

    def after_pass(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        if record.changed:
            self.note(graph, step.name)

    def note(self, graph: Graph, step: str) -> None:
        """See what stands for each source node now; `step` is to blame for what is new."""
        if not self.source:
            self._begin(graph)
        now = _standing(graph)
        for name in self.source:
            if now.get(name) != self.now.get(name) and self.by[name][-1:] != [step]:
                self.by[name].append(step)
        self.now = now

    def _begin(self, graph: Graph) -> None:
        for node in graph.walk():
            owner = node.graph.owner if node.graph is not None else None
            for name in node.where:
                self.source.setdefault(name, (node.op, owner.where[0] if owner else ""))
        self.now = _standing(graph)

    def fate_of(self, name: str, report: Report) -> SourceNode:
        """What became of one source node."""
        op, inside = self.source[name]
        standing, by = self.now.get(name), tuple(self.by[name])
        if standing is None and inside and self.by[inside]:  # it went with the node around it
            standing, by = self.now.get(inside), tuple(self.by[inside])
        fate = _fate(op, standing, by)
        ops = tuple(dict.fromkeys(op for op, _ in sorted(standing or ())))
        stood_for = {other for _, origin in standing or () for other in origin}
        refusals = report.refusals() if fate is Fate.KEPT else ()
        reasons = tuple(f"{rule}: {why}" for rule, where, why in refusals if name in where)
        others = len(stood_for - {name})
        return SourceNode(name, op, inside, fate, ops, others, by, tuple(dict.fromkeys(reasons)))


def _fate(op: str, standing: Standing | None, by: tuple[str, ...]) -> Fate:
    if not standing:
        return Fate.FOLDED if by[-1:] == ("fold-constants",) else Fate.REMOVED
    if any(len(origin) > 1 for _, origin in standing):
        return Fate.FUSED
    return Fate.KEPT if {new for new, _ in standing} == {op} else Fate.REWRITTEN


def _standing(graph: Graph) -> dict[str, Standing]:
    """For each source node, the nodes of `graph` that stand for it."""
    found: dict[str, Standing] = defaultdict(set)
    for node in graph.walk():
        for name in node.where:
            found[name].add((node.op, node.where))
    return dict(found)
