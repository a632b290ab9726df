"""What a pass is."""

from __future__ import annotations

import enum
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np

from graphopt.ir.graph import Graph, Value
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
        budget: what lossy passes may spend; None if nothing.
    """

    stats: RewriteStats = field(default_factory=RewriteStats)
    budget: ErrorBudget | None = None


@dataclass(frozen=True)
class Pass(ABC):
    """A graph-to-graph transformation: stateless, its options are its dataclass fields.

    A subclass sets `name` (kebab-case, the name of its module) and `fidelity`. Its docstring is its
    documentation: what it changes, a sentence "Needs …." on its conditions, and a Before/After that
    is run as a test. Running it twice changes nothing more.
    """

    name: ClassVar[str]
    fidelity: ClassVar[Fidelity]

    @abstractmethod
    def run(self, graph: Graph, ctx: PassContext) -> bool:
        """Transform `graph` in place; True if anything changed."""


def needs(pass_: type[Pass]) -> str:
    """What a pass needs, as its docstring says; "" if it does not say."""
    words = " ".join((pass_.__doc__ or "").split())
    found = re.search(r"(?<=\bNeeds )[^.:;]*", words)
    return found.group() if found else ""


@dataclass(frozen=True)
class RewritePass(Pass):
    """A pass that is a set of rules, applied to a fixed point."""

    rules: ClassVar[tuple[Rule, ...]]

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        return rewrite(graph, self.rules, ctx.stats)


@dataclass(frozen=True)
class Proposal:
    """A lossy change of one place, to be tried.

    Attributes:
        site: the place; of several proposals for one site at most one is taken.
        what: the change, such as "int8" or "rank 16".
        saves: bytes of constants that the model is smaller by.
        expected_error: how much is lost, in any unit that the pass uses throughout; only an order.
        apply: makes the change in a copy of the graph, whose values are looked up in the mapping;
            may put there what took the place of a value that other proposals know.
        for_speed: the model gets no smaller, only faster where the target computes in fewer bits;
            `saves` then counts what is computed so.
        in_floats: a layer then multiplies floats, where it could otherwise multiply bytes.
        may_slow: what it saves may take less time than what it adds; it is not done where the layer
            gets slower, as far as that can be timed.
    """

    site: str
    what: str
    saves: int
    expected_error: float
    apply: Callable[[Graph, dict[Value, Value]], None]
    for_speed: bool = False
    in_floats: bool = False
    may_slow: bool = False


class ErrorBudget(Protocol):
    """Decides which proposals a graph can bear, by measuring it."""

    @property
    def multiplies_bfloat16(self) -> bool:
        """Whether the target multiplies bfloat16 faster than float32."""

    @property
    def row_levels(self) -> int:
        """Steps in the range of a row, where it multiplies rows with a range each; or 0."""

    def choose(
        self, graph: Graph, proposals: Sequence[Proposal], share: float = 1.0
    ) -> list[Proposal]:
        """Those that fit together into a share of the budget; none is applied."""

    def observe(self, graph: Graph, values: Sequence[Value]) -> list[list[np.ndarray]]:
        """For each value what it is on calibration data, batch by batch."""

    def traced(self, graph: Graph, values: Sequence[Value]) -> list[list[np.ndarray]] | None:
        """For each value what it is on a log of requests, batch by batch; None without a log."""


@dataclass(frozen=True)
class LossyPass(Pass):
    """A pass that changes answers: it proposes, and the budget decides what is done.

    Sites that a pass has been at are not proposed again. `share` is how much of the budget may be
    gone after it, for a pass that others which save more come after.
    """

    share: ClassVar[float] = 1.0

    fidelity = Fidelity.LOSSY

    @abstractmethod
    def propose(self, graph: Graph, ctx: PassContext) -> Iterable[Proposal]:
        """The changes that could be made, in any order; several for a site are alternatives."""

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        if ctx.budget is None:
            return False
        chosen = ctx.budget.choose(graph, list(self.propose(graph, ctx)), self.share)
        same = _Same()
        for proposal in chosen:
            proposal.apply(graph, same)
            ctx.stats.hits[proposal.what] += 1
        return bool(chosen)


class _Same(dict[Value, Value]):
    """Maps every value to itself."""

    def __missing__(self, value: Value) -> Value:
        return value
