"""Observers around passes: printing, dumping. Passes know nothing of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from graphopt.ir.graph import Graph
from graphopt.ir.printer import to_text
from graphopt.pipeline.base import Pass
from graphopt.pipeline.report import PassRecord


class Instrument(Protocol):
    """Called before and after every pass."""

    def before_pass(self, step: Pass, graph: Graph) -> None: ...

    def after_pass(self, step: Pass, graph: Graph, record: PassRecord) -> None: ...


@dataclass
class PrintIR:
    """Writes the graph after passes called `after` ("all"; "change": those that changed it)."""

    after: str
    write: Callable[[str], None]

    def before_pass(self, step: Pass, graph: Graph) -> None:
        pass

    def after_pass(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        if self.after in ("all", step.name) or (self.after == "change" and record.changed):
            self.write(f"// after {record.spec}\n{to_text(graph)}")


@dataclass
class DumpIR:
    """Writes `000-input.txt`, `001-canonicalize.txt`, … after every pass that changed the graph."""

    folder: Path
    count: int = field(default=0, init=False)

    def before_pass(self, step: Pass, graph: Graph) -> None:
        if self.count == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write("input", graph)

    def after_pass(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        if record.changed:
            self._write(step.name, graph)

    def _write(self, name: str, graph: Graph) -> None:
        (self.folder / f"{self.count:03d}-{name}.txt").write_text(to_text(graph))
        self.count += 1


@dataclass
class Progress:
    """Tells how far the pipeline is, for a progress bar."""

    tell: Callable[[str], None]

    def before_pass(self, step: Pass, graph: Graph) -> None:
        self.tell(step.name)

    def after_pass(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        pass
