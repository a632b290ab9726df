"""`graphopt bench`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from command import graphopt


def test_table(model: Path) -> None:
    found = graphopt("bench", model, "--batch", "1,2", "--peers", "onnxruntime", "--seconds", "0")
    assert found.status == 0, found.err
    lines = found.out.splitlines()
    assert lines[0].startswith("clicks.onnx: µs per call, one thread")
    assert [line.split()[:2] for line in lines if " graphopt " in line] == [
        ["1", "graphopt"],
        ["2", "graphopt"],
    ]
    assert sum("onnxruntime-bound" in line for line in lines) == 2


def test_json_and_what_is_left_out(model: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from graphopt.measuring import peers

    missing = peers.Peer("fast", "no_such_package", "fp32", lambda path: lambda feeds: lambda: [])
    monkeypatch.setattr(peers, "ENGINES", {**peers.ENGINES, "fast": (missing,)})
    arguments = ("bench", model, "--batch", "1", "--peers", "onnxruntime,fast", "--seconds", "0")
    found = graphopt(*arguments, "--json")
    assert json.loads(found.out)["rows"][0]["batch"] == 1
    assert "no_such_package is not installed" in found.err
    assert graphopt(*arguments, "--quiet").err == ""


def test_given_inputs(model: Path, inputs: Path, tmp_path: Path) -> None:
    arguments = ("bench", model, "--peers", "onnxruntime", "--seconds", "0", "--json", "--inputs")
    (row,) = json.loads(graphopt(*arguments, inputs).out)["rows"]
    assert row["batch"] == 2
    assert set(row["differences"]) == {"onnxruntime", "onnxruntime-bound"}
    np.savez(tmp_path / "bad.npz", ids=np.zeros((2, 3), int))
    found = graphopt(*arguments, tmp_path / "bad.npz")
    assert found.status == 1
    assert "missing input 'dense'" in found.errors[0]


def test_unknown_peer(model: Path) -> None:
    found = graphopt("bench", model, "--peers", "tensorflow")
    assert found.status == 2
    assert "no peer is called 'tensorflow'" in found.err


def test_the_faster_engine_is_recorded_and_run(model: Path, tmp_path: Path) -> None:
    made = graphopt("optimize", model, "-o", tmp_path / "m.gopt", "--verify-latency", "1,2")
    assert made.status == 0, made.err
    assert "faster    at batch 1: " in made.err
    found = graphopt("run", tmp_path / "m.gopt", "--random", "--engine", "auto")
    assert found.status == 0, found.err
    assert "--verify-latency takes" in graphopt("optimize", model, "--verify-latency", "x").err
