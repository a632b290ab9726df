"""Runs pipelines: the only loop over passes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from graphopt.errors import GraphoptError, PassError
from graphopt.ir.graph import Graph
from graphopt.ir.verifier import verify
from graphopt.pipeline.base import Pass, PassContext
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
    """

    report: Report = field(default_factory=Report)
    instruments: Sequence[Instrument] = ()
    reproducer_folder: Path | None = None

    def run(self, graph: Graph, pipeline: Pipeline) -> bool:
        """Run every step; True if anything changed.

        Raises:
            PassError: a pass failed or left a broken graph; says how to reproduce it.
        """
        return any([self._run_step(graph, step) for step in pipeline.steps])

    def _run_step(self, graph: Graph, step: Step) -> bool:
        if isinstance(step, Pass):
            return self._run_pass(graph, step)
        changed = False
        for _ in range(MAX_ROUNDS):
            if not any([self._run_step(graph, inner) for inner in step.steps]):
                return changed
            changed = True
        raise PassError(f"{spec(step)} still changes the graph after {MAX_ROUNDS} rounds")

    def _run_pass(self, graph: Graph, step: Pass) -> bool:
        for instrument in self.instruments:
            instrument.before_pass(step, graph)
        ctx, before, snapshot = PassContext(), size_of(graph), graph.clone()
        start = time.perf_counter()
        try:
            changed = step.run(graph, ctx)
            seconds = time.perf_counter() - start
            verify(graph)
        except Exception as error:
            raise self._failure(snapshot, step, error) from error
        record = PassRecord(
            spec(step),
            step.fidelity.value,
            changed,
            dict(ctx.stats.hits),
            list(ctx.stats.refusals),
            before,
            size_of(graph),
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
        reason = str(error) if isinstance(error, GraphoptError) else f"{type(error).__name__}: {error}"
        message = f"pass {step.name} failed: {reason}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save(snapshot, folder / "model.onnx")
        except Exception:  # the graph itself may be what cannot be written
            return PassError(message)
        command = f"graphopt optimize {folder / 'model.onnx'} --passes '{spec(step)}'"
        return PassError(f"{message}\nTo reproduce: {command}", str(folder))


def size_of(graph: Graph) -> Size:
    """Nodes, those of subgraphs included, and bytes of distinct constants."""
    arrays = {id(v.const): v.const.nbytes for v in graph.constants() if v.const is not None}
    return Size(sum(1 for _ in graph.walk()), sum(arrays.values()))


__all__ = ["Fixpoint", "PassManager", "Pipeline", "size_of"]
