"""`graphopt check`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import graphopt


@pytest.fixture
def other(model: Path, tmp_path: Path) -> Path:
    """The same model with another bias."""
    proto = onnx.load(str(model))
    (bias,) = (t for t in proto.graph.initializer if t.name == "b")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([2.5], np.float32), "b"))
    onnx.save(proto, str(tmp_path / "other.onnx"))
    return tmp_path / "other.onnx"


def test_a_model_agrees_with_itself(model: Path) -> None:
    found = graphopt("check", model, model)
    assert (found.status, found.err) == (0, "")
    assert "The answers agree on 3 sets of inputs" in found.out
    assert "100.0000%" in found.out


def test_differences_are_named(model: Path, other: Path) -> None:
    found = graphopt("check", model, other, "--batch", "1,5")
    assert found.status == 3
    assert "The answers differ on 2 sets of inputs" in found.out
    assert "score" in found.out
    assert len(found.errors) == 1
    assert "output 'score'[" in found.err


def test_other_shapes(model: Path, flat_model: Path) -> None:
    found = graphopt("check", model, flat_model, "--batch", "4")
    assert found.status == 3
    assert "shape (4, 1) against (4,)" in found.out
    assert "shape (4, 1) against (4,)" in found.errors[0]


def test_narrow_terminals_show_the_worst_element_below(
    model: Path, flat_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column of two characters would take a dozen lines."""
    monkeypatch.setattr("graphopt.cli.console.PIPE_WIDTH", 60)
    table, _, below = graphopt("check", model, model, "--batch", "4").out.partition("score: [")
    assert "worst" not in table
    assert " of set 0: " in below.splitlines()[0]
    out = graphopt("check", model, flat_model, "--batch", "4").out
    assert "score: shape (4, 1) against (4,)\n" in out


def test_empty_outputs(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz", ids=np.ones((0, 3), int), dense=np.ones((0, 4), np.float32))
    found = graphopt("check", model, model, "--inputs", tmp_path / "none.npz")
    assert (found.status, found.err) == (0, "")
    assert "(empty)" in found.out


def test_tolerance(model: Path, other: Path) -> None:
    assert graphopt("check", model, other, "--atol", "1").status == 0
    assert graphopt("check", model, other, "--rtol", "0", "--atol", "0").status == 3


def test_given_inputs(model: Path, inputs: Path) -> None:
    out = graphopt("check", model, model, "--inputs", inputs).out
    assert "The answers agree on 1 set of inputs" in out


def test_json(model: Path, other: Path) -> None:
    found = graphopt("check", model, other, "--json", "--batch", "4")
    assert found.status == 3
    data = json.loads(found.out)
    assert data["agrees"] is False
    assert data["outputs"][0]["mismatches"] == 4


def test_seed_chooses_the_inputs(model: Path, other: Path) -> None:
    one, same, two = (graphopt("check", model, other, "--seed", k).out for k in (1, 1, 2))
    assert one == same != two
