"""Rewrites a graph for the kernels of the CUDA target."""

from __future__ import annotations

from graphopt.ir.graph import Graph
from graphopt.rewrite import RewriteStats, Rule, rewrite
from graphopt.targets.cuda import lookups

# In this order: a lookup that a concatenation takes in must not have become a kernel of its own.
_STEPS: tuple[tuple[Rule, ...], ...] = (lookups.CONCATENATED, lookups.ALONE)


def legalize(graph: Graph) -> None:
    """Turn what there are kernels for into ops of our own, in place."""
    for rules in _STEPS:
        rewrite(graph, rules, RewriteStats())
