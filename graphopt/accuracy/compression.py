"""Passes run under an error budget: choose on one half of the data, be judged on the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from graphopt.accuracy.budget import Budget, Speed, Spending
from graphopt.accuracy.judge import Judge, Verdict
from graphopt.accuracy.traces import Trace
from graphopt.accuracy.workbench import Workbench
from graphopt.errors import BudgetExceededError, SpecError
from graphopt.ir.graph import Graph
from graphopt.pipeline.base import Fidelity
from graphopt.pipeline.report import Report
from graphopt.pipeline.spec import Fixpoint, Pipeline, Step
from graphopt.serving.signature import Runnable, Signature

ATTEMPTS = ((1.0, 0.0), (1.0, 1.0), (0.5, 1.0), (0.25, 2.0))
"""What may be spent while choosing, as a share of the budget, and with how many standard errors of
caution: the next one is for when the rows that judge see a larger drop than those that chose."""

Run = Callable[[Graph, Spending], None]


@dataclass
class Compression:
    """One original model, one budget, and the rows that have the last word.

    Attributes:
        limit: the drop that is allowed.
        chooser, judge: the two halves of the data.
        trace: a log of requests, if there is one.
        speed: what makes the target faster.
    """

    limit: float
    chooser: Judge
    judge: Judge
    trace: Trace | None = None
    speed: Speed = field(default_factory=Speed)

    @staticmethod
    def of(
        original: Runnable, signature: Signature, budget: Budget, speed: Speed | None = None
    ) -> Compression:
        """Read the data and measure the original on it."""
        judges = budget.judges(original, signature)
        return Compression(budget.max_drop, *judges, budget.requests(), speed or Speed())

    def run(self, source: Graph, passes: Run, report: Report) -> Graph:
        """A copy of `source` after `passes`, compressed as far as the budget allows.

        Raises:
            BudgetExceededError: nothing that was proposed stays within the budget.
        """
        verdict: Verdict | None = None
        with closing(Workbench()) as bench:
            for share, caution in ATTEMPTS:
                graph = source.clone()
                report.passes.clear()
                spending = Spending(
                    self.chooser,
                    self.limit * share,
                    caution,
                    trace=self.trace,
                    bench=bench,
                    speed=self.speed,
                )
                passes(graph, spending)
                if spending.proposed and not spending.taken:
                    break
                verdict = self.judge.verdict(bench.load(graph))
                if verdict.drop <= self.limit:
                    self._note(report, spending, verdict)
                    return graph
        raise BudgetExceededError(self._complaint(verdict))

    def verify(self, results: Sequence[Runnable], report: Report) -> None:
        """Judge what was made of the graph; the first one's verdict is reported.

        Raises:
            BudgetExceededError: one answers worse than allowed.
        """
        verdicts = [self.judge.verdict(result) for result in results]
        report.verification = verdicts[0].to_json()
        for verdict in verdicts:
            if not verdict.drop <= self.limit:
                raise BudgetExceededError(self._complaint(verdict))

    def _note(self, report: Report, spending: Spending, verdict: Verdict) -> None:
        if not spending.proposed:
            report.warnings.append("nothing in the model could be compressed; no budget was spent")
        report.facts["compression"] = {
            "max_drop": self.limit,
            "proposed": spending.proposed,
            "taken": spending.taken,
            "trials": spending.trials,
            "limit_while_choosing": spending.limit,
            "caution_while_choosing": spending.caution,
            "rows_for_choosing": self.chooser.data.rows,
            "held_out": verdict.to_json(),
        }

    def _complaint(self, verdict: Verdict | None) -> str:
        allowed = f"{self.judge.metric.name} may get worse by {self.limit:g}"
        if verdict is None:
            return f"{allowed}: every change that was tried costs more; nothing was changed"
        return f"{allowed}, but on rows not used for choosing: {verdict}; nothing was changed"


def spends(pipeline: Pipeline) -> bool:
    """True if some pass of `pipeline` is lossy."""

    def lossy(step: Step) -> bool:
        if isinstance(step, Fixpoint):
            return any(map(lossy, step.steps))
        return step.fidelity is Fidelity.LOSSY

    return any(map(lossy, pipeline.steps))


def require_spender(pipeline: Pipeline) -> None:
    """
    Raises:
        SpecError: no pass of `pipeline` could use an error budget.
    """
    if not spends(pipeline):
        raise SpecError("an error budget is of use to lossy passes only; try -O3")
