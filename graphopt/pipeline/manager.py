"""Runs pipelines: the only loop over passes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from graphopt.errors import GraphoptError, PassError, TraceError
from graphopt.ir.graph import Graph
from graphopt.ir.verifier import verify
from graphopt.pipeline.base import ErrorBudget, Pass, PassContext
from graphopt.pipeline.instruments import Instrument
from graphopt.pipeline.report import PassRecord, Report, Size
from graphopt.pipeline.spec import Fixpoint, Pipeline, Step, spec

MAX_ROUNDS = 50


@dataclass
class PassManager:
    """Runs passes over a graph in place, verifying after each.

    Attributes:
        report: gets one `PassRecord` per pass run.
        instruments: called around every pass.
        reproducer_folder: where a failing pass leaves its input; a temporary folder if None.
        budget: what lossy passes may spend; without one they do nothing.
    """

    report: Report = field(default_factory=Report)
    instruments: Sequence[Instrument] = ()
    reproducer_folder: Path | None = None
    budget: ErrorBudget | None = None

    def run(self, graph: Graph, pipeline: Pipeline) -> bool:
        """Run every step; True if anything changed.

        Raises:
            PassError: a pass failed or left a broken graph; says how to reproduce it.
        """
        state = _State(graph)
        return any([self._run_step(state, step) for step in pipeline.steps])

    def _run_step(self, state: _State, step: Step) -> bool:
        if isinstance(step, Pass):
            return self._run_pass(state, step)
        changed = False
        for _ in range(MAX_ROUNDS):
            # What found nothing to do in this very graph finds nothing again.
            due = (inner for inner in step.steps if state.settled.get(inner) != state.version)
            if not any([self._run_step(state, inner) for inner in due]):
                return changed
            changed = True
        raise PassError(f"{spec(step)} still changes the graph after {MAX_ROUNDS} rounds")

    def _run_pass(self, state: _State, step: Pass) -> bool:
        graph = state.graph
        for instrument in self.instruments:
            instrument.before_pass(step, graph)
        ctx, before, snapshot = PassContext(budget=self.budget), state.size, state.snapshot
        start = time.perf_counter()
        try:
            changed = step.run(graph, ctx)
            seconds = time.perf_counter() - start
            verify(graph)
        except TraceError:  # what the user gave is wrong, not the pass
            raise
        except Exception as error:
            raise self._failure(snapshot, step, error) from error
        state.note(step, changed)
        record = PassRecord(
            spec(step),
            step.fidelity.value,
            changed,
            dict(ctx.stats.hits),
            list(ctx.stats.refusals),
            before,
            state.size,
            seconds,
        )
        self.report.passes.append(record)
        for instrument in self.instruments:
            instrument.after_pass(step, graph, record)
        return changed

    def _failure(self, snapshot: Graph, step: Pass, error: Exception) -> PassError:
        """An error that names a folder with the graph the pass was given."""
        from graphopt.ir.onnx_io import save

        folder = self.reproducer_folder or Path(tempfile.mkdtemp(prefix="graphopt-reproducer-"))
        reason = (
            str(error) if isinstance(error, GraphoptError) else f"{type(error).__name__}: {error}"
        )
        message = f"pass {step.name} failed: {reason}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save(snapshot, folder / "model.onnx")
        except Exception:  # the graph itself may be what cannot be written
            return PassError(message)
        command = f"graphopt optimize {folder / 'model.onnx'} --passes '{spec(step)}'"
        return PassError(f"{message}\nTo reproduce: {command}", str(folder))


@dataclass
class _State:
    """What is known of the graph as it is now.

    Attributes:
        version: counts the passes that changed it.
        settled: passes that found nothing to do, and in which version.
    """

    graph: Graph
    version: int = 0
    settled: dict[Step, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._measure()

    def note(self, step: Pass, changed: bool) -> None:
        """Say what `step` did."""
        if changed:
            self.version += 1
            self._measure()
        else:
            self.settled[step] = self.version

    def _measure(self) -> None:
        self.size, self.snapshot = size_of(self.graph), self.graph.clone()


def size_of(graph: Graph) -> Size:
    """Nodes, those of subgraphs included, and bytes of distinct constants."""
    arrays = {id(v.const): v.const.nbytes for v in graph.constants() if v.const is not None}
    return Size(sum(1 for _ in graph.walk()), sum(arrays.values()))


__all__ = ["Fixpoint", "PassManager", "Pipeline", "size_of"]
