"""Applies rules to a graph until none fits any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from graphopt.errors import PassError
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import UnknownRankError
from graphopt.rewrite.pattern import Match, NoMatch, Rule, match
from graphopt.rewrite.rewriter import Rewriter, erase_dead


@dataclass
class RewriteStats:
    """What rules did.

    Attributes:
        hits: how often each rule was applied.
        refusals: `(rule, source nodes, reason)`, each once, where a rule fitted and refused.
    """

    hits: Counter[str] = field(default_factory=Counter)
    refusals: dict[tuple[str, tuple[str, ...], str], None] = field(default_factory=dict)

    def refuse(self, rule: str, node: Node, reason: str) -> None:
        """Note why `rule` left `node` alone."""
        self.refusals[(rule, node.where, reason)] = None


def rewrite(graph: Graph, rules: Sequence[Rule], stats: RewriteStats) -> bool:
    """Apply `rules`, subgraphs included, to a fixed point; True if anything changed.

    Raises:
        PassError: the rules do not settle.
    """
    by_root: dict[tuple[str, str], list[Rule]] = {}
    for rule in rules:
        for root in {(p.op_type, p.domain) for p in rule.patterns}:
            by_root.setdefault(root, []).append(rule)
    pending = dict.fromkeys(graph.walk())
    limit = 100 * len(pending) + 1000
    total = 0
    while pending:
        node = next(iter(pending))
        del pending[node]
        if node.graph is None:
            continue
        for rule in by_root.get((node.op_type, node.domain), ()):
            touched = _apply(rule, node, stats)
            if touched is None:
                continue
            total += 1
            if total > limit:
                raise PassError(f"rules do not settle; the last was {rule.name} at {node.where}")
            pending.update(dict.fromkeys(touched))
            if node.graph is not None:
                pending[node] = None
            break
    return total > 0


def _apply(rule: Rule, node: Node, stats: RewriteStats) -> list[Node] | None:
    """Apply `rule` at `node`; the nodes worth visiting again, or None if it does not fit."""
    for pattern in rule.patterns:
        if (pattern.op_type, pattern.domain) != (node.op_type, node.domain):
            continue
        found = match(pattern, node)
        if isinstance(found, Match):
            touched = _replace(rule, found, stats)
            if touched is not None:
                return touched
        elif isinstance(found, NoMatch):
            stats.refuse(rule.name, node, found.reason)
    return None


def _replace(rule: Rule, found: Match, stats: RewriteStats) -> list[Node] | None:
    root = found.root
    rewriter = Rewriter(root, found.nodes)
    arguments = {"node": root, **found.values}
    try:
        result = rule.build(rewriter, **{name: arguments[name] for name in rule.parameters})
    except UnknownRankError:
        result = NoMatch("the rank of a tensor is not known")
    if result is None or isinstance(result, NoMatch):
        rewriter.take_back()
        if result is not None:
            stats.refuse(rule.name, root, result.reason)
        return None
    replacements = (result,) if isinstance(result, Value) else tuple(result)
    assert len(replacements) == len(root.outputs), f"{rule.name}: one value per output, please"
    stats.hits[rule.name] += 1
    touched = list(rewriter.inserted)
    neighbours = [v.producer for n in found.nodes for v in n.inputs if v is not None]
    for old, new in zip(root.outputs, replacements):
        touched += old.users
        assert root.graph is not None
        root.graph.replace_uses(old, new)
        if new.producer is not None:
            touched.append(new.producer)
    assert root.graph is not None
    erase_dead(root.graph, [root, *found.nodes, *rewriter.inserted])
    touched += [n for n in neighbours if n is not None]
    return [n for n in touched if n.graph is not None]
