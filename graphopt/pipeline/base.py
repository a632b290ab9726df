"""What a pass is."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from graphopt.ir.graph import Graph
from graphopt.rewrite import RewriteStats, Rule, rewrite


class Fidelity(enum.Enum):
    """What a pass may do to the answers; sets the tolerance of every check of it.

    EXACT: same bits. REASSOCIATES: the order of float operations may change. LOSSY: answers change,
    and the pass runs only under an error budget.
    """

    EXACT = "exact"
    REASSOCIATES = "reassociates"
    LOSSY = "lossy"

    @property
    def tolerance(self) -> tuple[float, float]:
        """(rtol, atol) for comparing float32 outputs before and after."""
        return {"exact": (0.0, 0.0), "reassociates": (1e-4, 1e-5), "lossy": (float("inf"),) * 2}[
            self.value
        ]


@dataclass
class PassContext:
    """What a run of one pass may use and adds to.

    Attributes:
        stats: rewrites by rule, and refusals with their reasons.
    """

    stats: RewriteStats = field(default_factory=RewriteStats)


@dataclass(frozen=True)
class Pass(ABC):
    """A graph-to-graph transformation: stateless, its options are its dataclass fields.

    A subclass sets `name` (kebab-case, the name of its module) and `fidelity`. Its docstring is its
    documentation, with a Before/After that is run as a test. Running it twice changes nothing more.
    """

    name: ClassVar[str]
    fidelity: ClassVar[Fidelity]

    @abstractmethod
    def run(self, graph: Graph, ctx: PassContext) -> bool:
        """Transform `graph` in place; True if anything changed."""


@dataclass(frozen=True)
class RewritePass(Pass):
    """A pass that is a set of rules, applied to a fixed point."""

    rules: ClassVar[tuple[Rule, ...]]

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        return rewrite(graph, self.rules, ctx.stats)
