"""The one driver of lossy passes: tries what they propose, measures, and keeps what fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path

import numpy as np

from graphopt.accuracy import datasets, metrics
from graphopt.accuracy.datasets import Dataset
from graphopt.accuracy.judge import Judge
from graphopt.accuracy.metrics import Metric
from graphopt.accuracy.pace import is_faster
from graphopt.accuracy.stopwatch import Stopwatch
from graphopt.accuracy.traces import Trace
from graphopt.accuracy.workbench import Workbench
from graphopt.errors import SpecError
from graphopt.ir.graph import Graph, Value
from graphopt.pipeline.base import Proposal
from graphopt.serving.signature import Runnable, Signature

OFFENDERS = 3  # so many sites in a row that do not fit, and the rest is not tried at that step


@dataclass(frozen=True)
class Budget:
    """How much worse a compressed model may answer, and on which data.

    Attributes:
        data: a file (see `graphopt.accuracy.datasets`) or a `Dataset`. One half of the rows
            decides what is done, the other one gives the figure that counts.
        max_drop: by how much the metric may get worse, in its own unit.
        metric: a name, a `Metric`, or a function of (scores, labels); without one it is
            "mean-error", the mean difference from the original's scores, for which data need no
            labels.
        score: the output that is judged; see `Judge`.
        labels, groups, columns: where they are in a file; see `datasets.read`.
        trace: a log of requests, as `data` but without labels, and with the inputs that ids come
            from at least. It allows passes to act on which rows of tables are read, and how often.
    """

    data: str | Path | Dataset
    max_drop: float
    metric: str | Metric | Callable[..., float] = "mean-error"
    score: str | None = None
    labels: str = "label"
    groups: str = "group"
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    trace: str | Path | Dataset | None = None

    def __post_init__(self) -> None:
        for name, data in (("data", self.data), ("trace", self.trace or "")):
            if not isinstance(data, (str, Path, Dataset)):
                raise SpecError(f"{name} are a file or a Dataset, not {type(data).__name__}")
        if not (isinstance(self.max_drop, Real) and self.max_drop >= 0):
            raise SpecError(f"a drop of {self.max_drop} cannot be allowed; give 0 or more")
        metrics.find(self.metric)

    def dataset(self, signature: Signature) -> Dataset:
        """The data, read for a model that takes `signature`."""
        if isinstance(self.data, Dataset):
            return self.data
        return datasets.read(
            self.data, signature, labels=self.labels, groups=self.groups, columns=self.columns
        )

    def requests(self) -> Trace | None:
        """The trace, if there is one."""
        return None if self.trace is None else Trace(self.trace, self.columns)

    def judges(self, original: Runnable, signature: Signature) -> tuple[Judge, Judge]:
        """Who chooses, and who has the last word: they see different rows."""
        halves, metric = self.dataset(signature).split(), metrics.find(self.metric)
        first, second = (Judge(original, half, metric, self.score) for half in halves)
        return first, second


@dataclass(frozen=True)
class Speed:
    """What makes a model faster where it is to run.

    Attributes:
        multiplies_bytes: whether what is done for speed alone does; None to measure it on the
            bench.
        multiplies_bfloat16: whether products of bfloat16 are faster than those of float32.
        row_levels: steps in the range of a row, where rows with a range each are multiplied; or 0.
        stopwatch: times layers on the target; None if that is not here.
    """

    multiplies_bytes: bool | None = True
    multiplies_bfloat16: bool = False
    row_levels: int = 0
    stopwatch: Stopwatch | None = None


@dataclass
class Spending:
    """Chooses among proposals so that the drop stays within `limit` on the judge's rows.

    Attributes:
        caution: standard errors of a drop that are added to it; without any, a change that wins on
            these rows by luck is taken for a good one.
        proposed, taken: how many proposals there were and how many were chosen.
        trials: models measured.
        trace: what passes may know of the requests to come.
        bench: where models run.
        speed: what makes the target faster.
    """

    judge: Judge
    limit: float
    caution: float = 0.0
    proposed: int = 0
    taken: int = 0
    trials: int = 0
    trace: Trace | None = None
    bench: Workbench = field(default_factory=Workbench, repr=False)
    speed: Speed = field(default_factory=Speed)

    @property
    def multiplies_bfloat16(self) -> bool:
        """See `ErrorBudget`."""
        return self.speed.multiplies_bfloat16

    @property
    def row_levels(self) -> int:
        """See `ErrorBudget`."""
        return self.speed.row_levels

    def choose(
        self, graph: Graph, proposals: Sequence[Proposal], share: float = 1.0
    ) -> list[Proposal]:
        """Those that fit together, the most saving ones first; see `ErrorBudget`.

        Of every site the alternative that saves most is tried; all at once, then by bisection in
        the order of what is lost for each byte. Sites that do not fit go on with their next one.
        What is done for speed alone must make the target faster, and nothing keeps a target that
        is faster with bytes from multiplying them. Where that is measured, it is of one kind.
        """
        fast = self.speed.multiplies_bytes
        if fast is not None:
            proposals = [p for p in proposals if not (p.in_floats if fast else p.for_speed)]
        self.proposed += len(proposals)
        kinds = list(dict.fromkeys(p.what for p in proposals if p.for_speed))
        if fast is not None or not kinds:
            taken = self._fitting(graph, proposals, self.limit * share)
        else:
            for kind in kinds:
                tried = [p for p in proposals if not p.for_speed or p.what == kind]
                taken = self._paying(graph, self._fitting(graph, tried, self.limit * share))
                if any(proposal.for_speed for proposal in taken):
                    break
        taken = self._not_slower(graph, taken)
        self.taken += len(taken)
        return taken

    def _fitting(self, graph: Graph, proposals: Sequence[Proposal], limit: float) -> list[Proposal]:
        """Those that fit together within `limit`, however fast."""
        sites: dict[str, list[Proposal]] = {}
        for proposal in sorted(proposals, key=lambda p: -p.saves):
            sites.setdefault(proposal.site, []).append(proposal)
        taken: list[Proposal] = []
        while sites:
            step = sorted((options.pop(0) for options in sites.values()), key=_price)
            taken = self._extended(graph, taken, step, limit)
            done = {proposal.site for proposal in taken}
            sites = {name: left for name, left in sites.items() if left and name not in done}
        return taken

    def _paying(self, graph: Graph, taken: Sequence[Proposal]) -> list[Proposal]:
        """`taken` with those for speed that together are faster: all, or the larger ones."""
        kept = [proposal for proposal in taken if not proposal.for_speed]
        fast = sorted((p for p in taken if p.for_speed), key=lambda p: -p.saves)
        if not fast:
            return kept
        before = self._changed(graph, kept)
        while fast:
            if is_faster(before, self._changed(graph, [*kept, *fast]), self.judge.data):
                break
            fast = fast[: len(fast) // 2]
        return [*kept, *fast]

    def _not_slower(self, graph: Graph, taken: list[Proposal]) -> list[Proposal]:
        """`taken` without what makes its own layer slower, as far as there is a stopwatch."""
        timed = [proposal for proposal in taken if proposal.may_slow]
        if self.speed.stopwatch is None or not timed:
            return taken
        kept = [proposal for proposal in taken if proposal not in timed]
        slower = self.speed.stopwatch.slower(graph, kept, timed, self.judge.data, self.bench)
        return [proposal for proposal in taken if proposal not in slower]

    def _extended(
        self, graph: Graph, taken: list[Proposal], step: Sequence[Proposal], limit: float
    ) -> list[Proposal]:
        """`taken` with as much of `step` as keeps the drop within `limit`."""
        offenders, rest = 0, list(step)
        while rest and offenders < OFFENDERS:
            count = self._longest_prefix(graph, taken, rest, limit)
            taken, offenders = [*taken, *rest[:count]], offenders + 1 if count == 0 else 1
            rest = rest[count + 1 :]
        return taken

    def _longest_prefix(
        self, graph: Graph, taken: list[Proposal], rest: Sequence[Proposal], limit: float
    ) -> int:
        if self._fits(graph, [*taken, *rest], limit):
            return len(rest)
        fits, fails = 0, len(rest)
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if self._fits(graph, [*taken, *rest[:middle]], limit):
                fits = middle
            else:
                fails = middle
        return fits

    def _fits(self, graph: Graph, proposals: Sequence[Proposal], limit: float) -> bool:
        self.trials += 1
        return self.judge.drop(self._changed(graph, proposals), self.caution) <= limit

    def _changed(self, graph: Graph, proposals: Sequence[Proposal]) -> Runnable:
        values: dict[Value, Value] = {}
        copy = graph.clone(values)
        for proposal in proposals:
            proposal.apply(copy, values)
        return self.bench.load(copy)

    def observe(self, graph: Graph, values: Sequence[Value]) -> list[list[np.ndarray]]:
        """Some values on the judge's rows; see `ErrorBudget`."""
        if not values:
            return []
        copies: dict[Value, Value] = {}
        copy = graph.clone(copies)
        names = [copy.fresh_name("observed") for _ in values]
        copy.set_outputs(
            [*copy.outputs, *(copies[v] for v in values)], [*copy.output_names, *names]
        )
        model = self.bench.load(copy)
        found = [model.run(batch) for batch in self.judge.data.batches]
        return [[outputs[name] for outputs in found] for name in names]

    def traced(self, graph: Graph, values: Sequence[Value]) -> list[list[np.ndarray]] | None:
        """Some values on the trace; see `ErrorBudget`."""
        if self.trace is None:
            return None
        return self.trace.values(graph, values, self.bench) if values else []


def _price(proposal: Proposal) -> float:
    """What is lost for each byte that is saved."""
    return proposal.expected_error / max(1, proposal.saves)
