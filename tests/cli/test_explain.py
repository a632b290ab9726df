"""`graphopt explain`."""

from __future__ import annotations

import json
from pathlib import Path

from command import graphopt


def test_every_node_is_listed(model: Path) -> None:
    found = graphopt("explain", model)
    assert (found.status, found.err) == (0, "")
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in found.out.splitlines() if line}
    assert lines["same"] == "(Identity) removed canonicalize"
    assert lines["z"] == "(Gemm) cpu::Dense of 2 cpu"
    assert lines["source"].startswith("6 nodes: ")
    assert list(model.parent.iterdir()) == [model]


def test_reasons(model: Path) -> None:
    found = graphopt("explain", model, "--passes", "simplify-slices", "--target", "onnxruntime")
    why = found.out.partition("Why rules left what is kept\n")[2]
    assert "gather_to_slice: the indices are not a constant vector\n    user, e\n" in why


def test_json(model: Path) -> None:
    found = json.loads(graphopt("explain", model, "--json", "-O1").out)
    assert [node["name"] for node in found["nodes"]] == ["user", "same", "e", "x", "z", "score"]
    assert found["nodes"][1]["fate"] == "removed"


def test_a_level_and_passes(model: Path) -> None:
    found = graphopt("explain", model, "-O1", "--passes", "dce")
    assert found.status == 2
    assert found.errors == ["graphopt: error: give either -O or --passes, not both"]


def test_bad_model(tmp_path: Path) -> None:
    assert graphopt("explain", tmp_path / "none.onnx").status == 1
