"""`graphopt optimize`: what it writes, what it prints, and what it refuses to overwrite."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
from command import Outcome, graphopt

from graphopt.ir import onnx_io
from graphopt.ir.graph import Graph
from graphopt.pipeline import presets
from graphopt.pipeline.base import Fidelity, Pass, PassContext
from graphopt.pipeline.spec import Pipeline
from graphopt.testing import random_inputs


def portable(model: Path, *more: object) -> Outcome:
    return graphopt("optimize", model, "--target", "onnxruntime", *more)


@pytest.mark.parametrize(
    "level", [["-O2"], ["-O", "2"], ["-O0"], [], ["--passes", "canonicalize,dce"]]
)
def test_levels_and_passes(model: Path, level: list[str]) -> None:
    found = portable(model, *level)
    assert found.status == 0, found.err
    assert found.out == ""
    graph = onnx.load(model.with_suffix(".opt.onnx")).graph
    identities = sum(node.op_type == "Identity" for node in graph.node)
    assert identities == (1 if "-O0" in level else 0)


def test_compiled_artifact_is_written_beside_the_model(model: Path) -> None:
    found = graphopt("optimize", model)
    assert found.status == 0, found.err
    artifact = model.with_suffix(".gopt")
    names = {"manifest.json", "model.onnx", "model.so", "report.json", "weights.bin"}
    assert {path.name for path in artifact.iterdir()} == names
    assert graphopt("optimize", model).status == 0  # replaces its own
    assert sorted(p.name for p in model.parent.iterdir()) == ["clicks.gopt", "clicks.onnx"]


def test_summary_says_what_happened(model: Path) -> None:
    found = portable(model)
    lines = found.err.splitlines()
    (row,) = (line for line in lines if line.startswith("canonicalize"))
    assert "6 → 5" in row
    labels = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert labels[-5:] == ["stages", "model", "tables", "verified", "wrote"]
    assert "on 3 sets of inputs" in found.err
    assert "tables    1 in the source, 3.2 kB" in found.err
    assert str(model.with_suffix(".opt.onnx")) in lines[-1]


def test_quiet_and_verbose(model: Path) -> None:
    assert portable(model, "-q").err == ""
    verbose = portable(model, "-v").err
    assert "graphopt: optimize: dce …" in verbose
    assert "found nothing to do" not in verbose


def test_no_verify(model: Path) -> None:
    assert "no (--no-verify)" in portable(model, "--no-verify").err


def test_verify_on_given_inputs(model: Path, inputs: Path) -> None:
    assert "on 1 set of inputs" in portable(model, "--inputs", inputs).err


def test_report(model: Path, tmp_path: Path) -> None:
    assert portable(model, "--report", tmp_path / "r.json").status == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["verification"]["agrees"] is True
    assert report["tables"][0]["name"] == "users"


def test_graphs_go_to_stdout(model: Path) -> None:
    every = portable(model, "--print-ir-after", "all").out
    changed = portable(model, "--print-ir-after", "change").out
    one = portable(model, "--print-ir-after", "canonicalize", "--passes", "dce,canonicalize").out
    assert every.count("// after ") > changed.count("// after ") >= 1
    assert one.startswith("// after canonicalize\ngraph opset=")
    assert one.count("// after ") == 1


def test_dump(model: Path, tmp_path: Path) -> None:
    assert (
        portable(model, "--dump-ir", tmp_path / "dump", "--passes", "dce,canonicalize").status == 0
    )
    names = sorted(path.name for path in (tmp_path / "dump").iterdir())
    assert names == ["000-input.txt", "001-canonicalize.txt"]


def test_time_passes(model: Path) -> None:
    err = portable(model, "--time-passes").err
    assert "time per pass" in err
    assert "all passes" in err


def test_explain_groups_by_rule_and_reason(model: Path) -> None:
    err = portable(model, "--explain", "-q").err
    assert err.count("    at ") >= 1
    rules = [line for line in err.splitlines() if not line.startswith(" ")]
    assert len(rules) == len(set(rules))


@dataclass(frozen=True)
class Negate(Pass):
    """A pass that is wrong."""

    name: ClassVar[str] = "negate"
    fidelity: ClassVar[Fidelity] = Fidelity.EXACT

    def run(self, graph: Graph, ctx: PassContext) -> bool:
        (output,) = graph.outputs
        graph.set_outputs([graph.insert("Neg", [output]).output])
        return True


def test_wrong_answers_are_not_kept(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "O3", Pipeline((Negate(),)))
    found = portable(model, "-O3", "--explain")
    assert found.status == 3
    assert "differs from the source on random inputs (" in found.errors[0]
    assert "try --inputs real.npz): output 'score'[" in found.errors[0]
    assert "explain:" in found.err  # said even so
    assert [path.name for path in model.parent.iterdir()] == ["clicks.onnx"]
    real = model.with_suffix(".npz")
    np.savez(real, **random_inputs(onnx_io.load(model), {"N": 3}))
    found = portable(model, "-O3", "--inputs", real)
    assert found.status == 3
    assert "differs from the source: output 'score'[" in found.errors[0]


def test_warnings_are_shown(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt import api

    real = api.compile

    def warn(*args, report, **kwargs):  # type: ignore[no-untyped-def]
        report.warnings.append("ids are floats")
        return real(*args, report=report, **kwargs)

    monkeypatch.setattr(api, "compile", warn)
    assert "graphopt: warning: ids are floats\n" in portable(model, "-q").err
