"""`graphopt optimize --data … --max-drop …`: what it writes, says and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import Outcome, graphopt

from graphopt.ir import onnx_io
from graphopt.testing import parse


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        ids=rng.integers(0, 100, (2000, 3)),
        dense=rng.normal(size=(2000, 4)).astype(np.float32),
        label=rng.integers(0, 2, 2000),
    )
    return tmp_path / "data.npz"


def compressed(model: Path, *more: object) -> Outcome:
    return graphopt("optimize", model, "--target", "onnxruntime", *more)


def test_a_compressed_model(model: Path, data: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--data", data, "--metric", "auc", "--max-drop", "0.01", "--report", report]
    found = compressed(model, *options)
    assert found.status == 0, found.err
    assert "quantize-tables" in found.err
    assert "on rows not used for choosing: auc" in found.err
    proto = onnx.load(model.with_suffix(".opt.onnx"))
    assert any(node.op_type.startswith("QuantizedLookup") for node in proto.graph.node)
    said = json.loads(report.read_text())
    assert said["facts"]["compression"]["taken"] == 1
    assert said["verification"]["metric"] == "auc"


def test_without_a_metric_the_scores_are_compared(model: Path, data: Path) -> None:
    found = compressed(model, "--data", data, "--max-drop", "0.05")
    assert found.status == 0, found.err
    assert "mean-error" in found.err


def test_rows_that_no_logged_request_reads(tmp_path: Path) -> None:
    model, data, log = tmp_path / "m.onnx", tmp_path / "data.npz", tmp_path / "log.npz"
    text = """(int64[N] ids, float[N,8] x) => (float[N,8] y) <float[1000,8] users> {
        e = Gather(users, ids)
        y = Add(e, x)
    }"""
    onnx_io.save(parse(text), model)
    ids = np.arange(400) % 50
    np.savez(data, ids=ids, x=np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32))
    options = ["--data", data, "--max-drop", "0", "--passes", "prune-rows"]
    np.savez(log, ids=ids)
    found = compressed(model, *options, "--trace", log)
    assert found.status == 0, found.err
    assert "prune-rows" in found.err
    assert "prune-rows" not in compressed(model, *options).err
    np.savez(log, other=ids)
    refused = compressed(model, *options, "--trace", log)
    assert refused.status == 1
    assert "nothing for input 'ids'" in refused.err


def test_a_budget_that_cannot_be_met(model: Path, data: Path) -> None:
    found = compressed(model, "--data", data, "--metric", "max-error", "--max-drop", "0")
    assert found.status == 4
    assert "error: max-error may get worse by 0: every change" in found.err
    assert not model.with_suffix(".opt.onnx").exists()


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--max-drop", "0.1"], 2, "both --data and --max-drop"),
        (["--metric", "auc"], 2, "both --data and --max-drop"),
        (["--trace", "DATA"], 2, "both --data and --max-drop"),
        (["--data", "DATA", "--max-drop", "0.1", "--metric", "auk"], 2, "no metric is called"),
        (["--data", "DATA", "--max-drop", "-1"], 2, "--max-drop"),
        (["--data", "DATA", "--max-drop", "0.1", "-O2"], 2, "lossy passes only"),
        (["--data", "nowhere.npz", "--max-drop", "0.1"], 1, "no such file"),
        (["--data", "DATA", "--max-drop", "1", "--metric", "gauc"], 1, "needs groups"),
        (["--data", "DATA", "--max-drop", "1", "--metric", "auc", "--labels", "y"], 1, "labels"),
        (["--data", "DATA", "--max-drop", "1", "--columns", "ids"], 2, "INPUT=NAME"),
    ],
)
def test_what_is_refused(
    model: Path, data: Path, options: list[str], status: int, says: str
) -> None:
    found = compressed(model, *[data if option == "DATA" else option for option in options])
    assert found.status == status, found.err
    assert says in found.err
