"""`graphopt optimize --sweep`: the table, the files, and the command of each point."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from command import Outcome, graphopt


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        ids=rng.integers(0, 100, (2000, 3)),
        dense=rng.normal(size=(2000, 4)).astype(np.float32),
        click=rng.integers(0, 2, 2000),
    )
    return tmp_path / "data.npz"


def swept(model: Path, data: Path, *more: object) -> Outcome:
    common = ("--target", "onnxruntime", "--data", data, "--metric", "auc", "--labels", "click")
    return graphopt("optimize", model, *common, *more)


def test_a_sweep_and_the_command_of_a_point(model: Path, data: Path, tmp_path: Path) -> None:
    report, plot = tmp_path / "sweep.json", tmp_path / "sweep.svg"
    found = swept(model, data, "--sweep", "0.001,0.05", "--report", report, "--plot", plot)
    assert found.status == 0, found.err
    assert not model.with_suffix(".opt.onnx").exists()
    points = json.loads(report.read_text())["points"]
    assert [point["max_drop"] for point in points] == [None, 0.001, 0.05]
    assert points[0]["command"] is None
    assert "</svg>" in plot.read_text()
    command = points[2]["command"]
    assert command in found.out
    assert "--oob" not in command and "--group" not in command
    again = tmp_path / "again.json"
    done = graphopt(*shlex.split(command)[1:], "--report", again)
    assert done.status == 0, done.err
    assert json.loads(again.read_text())["verification"] == points[2]["verdict"]
    made = [*tmp_path.glob("clicks.opt.onnx*")]
    assert sum(file.stat().st_size for file in made) == points[2]["bytes"]


def test_a_budget_that_cannot_be_met_has_a_line(model: Path, data: Path) -> None:
    found = swept(model, data, "--metric", "max-error", "--sweep", "0")
    assert found.status == 0, found.err
    assert "cannot be met" in found.out
    assert "--max-drop" not in found.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sweep", "0.1,x"], "--sweep takes budgets such as"),
        (["--sweep", "-1"], "--sweep takes budgets such as"),
        (["--sweep", ""], "--sweep takes budgets such as"),
        (["--sweep", "0.1", "--max-drop", "0.1"], "no use for --max-drop"),
        (["--sweep", "0.1", "-o", "x.onnx"], "no use for --output"),
        (["--sweep", "0.1", "--precision", "bf16"], "no use for --precision"),
        (["--sweep", "0.1", "--no-verify"], "no use for --verify"),
        (["--plot", "x.png"], "--plot draws a sweep"),
        (["--sweep", "0.1", "--plot", "x.bmp"], "should end in .png"),
        (["--sweep", "0.1", "--passes", "dce"], "lossy passes only"),
    ],
)
def test_what_is_refused(model: Path, data: Path, options: list[str], says: str) -> None:
    found = swept(model, data, *options)
    assert found.status == 2, found.err
    assert says in found.err
    assert len(found.errors) == 1


def test_a_sweep_without_data(model: Path) -> None:
    found = graphopt("optimize", model, "--sweep", "0.1")
    assert found.status == 2
    assert "--sweep takes --data" in found.err


def test_a_plot_without_matplotlib(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = swept(model, data, "--sweep", "0.1", "--plot", "x.png")
    assert found.status == 2
    assert "pip install 'graphopt[plot]'" in found.err
