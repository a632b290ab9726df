"""How pipelines run: to a fixed point, verified, measured, and with a reproducer when they fail."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from graphopt.errors import InvalidModelError, PassError
from graphopt.ir import onnx_io
from graphopt.ir.graph import Graph, Use
from graphopt.passes.canonicalize import Canonicalize
from graphopt.passes.dce import Dce
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.pipeline.instruments import DumpIR, PrintIR, Progress
from graphopt.pipeline.manager import PassManager, size_of
from graphopt.pipeline.report import PassRecord, Report
from graphopt.pipeline.spec import Fixpoint, Pipeline
from graphopt.testing import dump, parse

TEXT = """(float[N,4] x) => (float[N,4] y) <float[4] w, float one = {1}> {
    a = Mul(x, one)
    b = Exp(a)
    y = Add(a, w)
}"""


@dataclass(frozen=True)
class Custom(Pass):
    """Does what the test wants."""

    name = "custom"
    fidelity = Fidelity.EXACT
    act: Callable[[Graph], bool] = field(default=lambda graph: False)

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        return self.act(graph)


@dataclass
class Log:
    """Notes what instruments are told."""

    lines: list[str] = field(default_factory=list)

    def before_pass(self, step: Pass, graph: Graph) -> None:
        self.lines.append(f"before {step.name} {len(graph)}")

    def after_pass(self, step: Pass, graph: Graph, record: PassRecord) -> None:
        self.lines.append(f"after {step.name} {len(graph)} {record.changed}")


def test_passes_run_in_order_and_are_recorded() -> None:
    graph, log = parse(TEXT), Log()
    manager = PassManager(instruments=[log])
    assert manager.run(graph, Pipeline((Dce(), Canonicalize(), Dce())))
    assert log.lines == [
        "before dce 3",
        "after dce 2 True",
        "before canonicalize 2",
        "after canonicalize 1 True",
        "before dce 1",
        "after dce 1 False",
    ]
    first, second, _ = manager.report.passes
    assert first.spec == "dce" and first.rewrites == {"erased": 1} and first.seconds >= 0
    assert (first.before.nodes, first.after.nodes) == (3, 2)
    assert (second.before.bytes, second.after.bytes) == (20, 16)
    assert first.fidelity == "exact"


def test_an_empty_pipeline_does_nothing() -> None:
    graph = parse(TEXT)
    assert not PassManager().run(graph, Pipeline()) and len(graph) == 3


def test_a_fixpoint_ends_when_nothing_changes() -> None:
    left = iter(range(3))
    step = Custom(lambda graph: next(left, None) is not None)
    manager = PassManager()
    assert manager.run(parse(TEXT), Pipeline((Fixpoint((step, Dce())),)))
    assert [record.changed for record in manager.report.passes if record.spec == "dce"] == [
        True,
        False,
        False,
    ]
    assert [r.changed for r in manager.report.passes if r.spec != "dce"] == [True] * 3 + [False]


def test_a_fixpoint_does_not_ask_again_what_has_not_changed() -> None:
    manager = PassManager()
    graph = parse("(float[N] x) => (float[N] y) { a = Neg(x) b = Exp(x) y = Relu(a) }")
    manager.run(graph, Pipeline((Fixpoint((Canonicalize(), Dce())),)))
    assert [record.spec for record in manager.report.passes] == [
        "canonicalize",
        "dce",
        "canonicalize",
        "dce",
    ]


def test_a_fixpoint_that_never_settles_is_stopped() -> None:
    with pytest.raises(PassError, match="still changes the graph after 50 rounds"):
        PassManager().run(parse(TEXT), Pipeline((Fixpoint((Custom(lambda graph: True),)),)))


def test_a_failing_pass_leaves_a_reproducer(tmp_path: Path) -> None:
    def fail(graph: Graph) -> bool:
        Dce().run(graph, PassContext())
        raise InvalidModelError("no such thing")

    folder = tmp_path / "reproducer"
    graph = parse(TEXT)
    given = dump(graph)
    with pytest.raises(PassError) as raised:
        PassManager(reproducer_folder=folder).run(graph, Pipeline((Custom(fail),)))
    assert "pass custom failed: no such thing" in str(raised.value)
    assert f"graphopt optimize {folder / 'model.onnx'} --passes 'custom{{act=" in str(raised.value)
    assert raised.value.reproducer == str(folder)
    assert isinstance(raised.value.__cause__, InvalidModelError)
    assert dump(onnx_io.load(folder / "model.onnx")) == given


def test_a_bug_in_a_pass_is_named(tmp_path: Path) -> None:
    def crash(graph: Graph) -> bool:
        raise ZeroDivisionError("oops")

    with pytest.raises(PassError, match="pass custom failed: ZeroDivisionError: oops"):
        PassManager(reproducer_folder=tmp_path).run(parse(TEXT), Pipeline((Custom(crash),)))


def test_a_pass_that_breaks_the_graph_is_caught(tmp_path: Path) -> None:
    def damage(graph: Graph) -> bool:
        node = next(graph.nodes)
        del node.output._uses[Use(node.output.users[0], 0)]
        return True

    with pytest.raises(PassError, match="uses are not exact"):
        PassManager(reproducer_folder=tmp_path).run(parse(TEXT), Pipeline((Custom(damage),)))


def test_where_no_reproducer_can_be_written_the_failure_is_still_told(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")

    def crash(graph: Graph) -> bool:
        raise ZeroDivisionError("oops")

    with pytest.raises(PassError) as raised:
        PassManager(reproducer_folder=blocked).run(parse(TEXT), Pipeline((Custom(crash),)))
    assert str(raised.value) == "pass custom failed: ZeroDivisionError: oops"
    assert raised.value.reproducer is None


@pytest.mark.parametrize(
    ("after", "headers"),
    [
        ("all", ["dce", "canonicalize", "dce"]),
        ("change", ["dce", "canonicalize"]),
        ("canonicalize", ["canonicalize"]),
        ("cse", []),
    ],
)
def test_the_graph_can_be_printed_after_passes(after: str, headers: list[str]) -> None:
    written: list[str] = []
    manager = PassManager(instruments=[PrintIR(after, written.append)])
    manager.run(parse(TEXT), Pipeline((Dce(), Canonicalize(), Dce())))
    assert [text.splitlines()[0] for text in written] == [f"// after {name}" for name in headers]
    assert all("graph opset=18 {" in text for text in written)


def test_the_graph_can_be_dumped_after_every_change(tmp_path: Path) -> None:
    manager = PassManager(instruments=[DumpIR(tmp_path / "dump")])
    manager.run(parse(TEXT), Pipeline((Dce(), Canonicalize(), Dce())))
    files = sorted(path.name for path in (tmp_path / "dump").iterdir())
    assert files == ["000-input.txt", "001-dce.txt", "002-canonicalize.txt"]
    assert "Exp" in (tmp_path / "dump" / "000-input.txt").read_text()


def test_progress_is_told_before_each_pass() -> None:
    told: list[str] = []
    PassManager(instruments=[Progress(told.append)]).run(parse(TEXT), Pipeline((Dce(), Dce())))
    assert told == ["dce", "dce"]


def test_sizes_count_shared_arrays_once() -> None:
    graph = Graph("g", {"": 18})
    array = np.zeros(4, np.float32)
    a, b = graph.constant(array), graph.constant(array)
    graph.set_outputs([graph.insert("Add", [a, b]).output], ["y"])
    assert (size_of(graph).nodes, size_of(graph).bytes) == (1, 16)


def test_the_report_is_json() -> None:
    report = Report(facts={"target": "cpu", "path": Path("model.onnx")})
    text = "(float[N] x) => (float[N] y) <float zero = {0}> { h = Add(x, zero) y = Neg(h) }"
    PassManager(report).run(parse(text), Pipeline((Canonicalize(), Canonicalize())))
    read = json.loads(report.to_json())
    assert read["facts"] == {"target": "cpu", "path": "model.onnx"}
    assert read["passes"][0]["spec"] == "canonicalize"
    (refusal,) = report.refusals()
    assert refusal[0] == "plus_zero" and re.search("not 0", refusal[2])
