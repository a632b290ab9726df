"""What a run did, as data. Every step appends to it; nothing reads it back."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Size:
    """How big a graph is: nodes (subgraphs included) and bytes of constants."""

    nodes: int
    bytes: int


@dataclass(frozen=True)
class PassRecord:
    """One run of one pass.

    Attributes:
        spec: the pass with its options, as text.
        rewrites: how often each rule was applied.
        refusals: `(rule, source nodes, reason)` for places that were looked at and left.
        seconds: wall time, verification not included.
    """

    spec: str
    fidelity: str
    changed: bool
    rewrites: dict[str, int]
    refusals: list[tuple[str, tuple[str, ...], str]]
    before: Size
    after: Size
    seconds: float


@dataclass
class Report:
    """Everything that happened on the way from a model to an artifact.

    Attributes:
        facts: versions, source hash, target, pipeline text, sizes; free-form but JSON-able.
        passes: one record per pass run, in order.
        tables: one entry per embedding table of the source (name, rows, dim, dtype, bytes).
        stages: seconds per stage (load, optimize, lower, build, verify, …).
        verification: outcome of the comparison with the source model, if it was made.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    passes: list[PassRecord] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    verification: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)

    def took(self, stage: str, since: float) -> None:
        """Add the seconds from `since`, by `time.perf_counter`, until now to those of a stage."""
        seconds = self.stages.get(stage, 0.0) + time.perf_counter() - since
        self.stages[stage] = round(seconds, 4)

    def to_json(self) -> str:
        """The report as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=str) + "\n"

    def refusals(self) -> list[tuple[str, tuple[str, ...], str]]:
        """Every reason why a rule left something alone, each once, in order."""
        found = (entry for record in self.passes for entry in record.refusals)
        return list(dict.fromkeys((rule, tuple(where), why) for rule, where, why in found))
