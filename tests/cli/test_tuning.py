"""`graphopt optimize --tune` and its cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import graphopt

from graphopt.ir import onnx_io
from graphopt.testing import parse


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One layer, too wide for any kernel but the packed GEMM."""
    path = tmp_path / "wide.onnx"
    text = "(float[N,3] x) => (float[N,40] y) <float[3,40] w> { y = MatMul(x, w) }"
    onnx_io.save(parse(text), path)
    return path


def test_tune_then_reuse(model: Path, tmp_path: Path) -> None:
    cache, out = tmp_path / "t.db", tmp_path / "m.gopt"
    options = ("--tuning-cache", cache, "--tune-batches", "1,2", "-o", out)
    strict = (*options, "--tuning-cache-read-only", "--error-on-cache-miss")
    missed = graphopt("optimize", model, *options, "--error-on-cache-miss")
    assert missed.status == 5
    assert "nothing about gemm-float32" in missed.err
    assert not out.exists()
    tuned = graphopt("optimize", model, *options, "--trials", "2")
    assert tuned.status == 0, tuned.err
    assert "1 of 1 kernels known, 2 measurements" in tuned.err
    reused = graphopt("optimize", model, *strict)
    assert reused.status == 0, reused.err
    assert "1 of 1 kernels known, 0 measurements" in reused.err
    assert json.loads((out / "report.json").read_text())["facts"]["tuning"]["measured"] == 0
    assert graphopt("check", model, out, "--batch", "1,9").status == 0


def test_search_without_a_template(tmp_path: Path) -> None:
    path, cache, out = tmp_path / "chain.onnx", tmp_path / "t.db", tmp_path / "m.gopt"
    text = "(float[N,24] x, float[N,M] z) => (float[N,24] y, float[N,M] w) {"
    onnx_io.save(parse(f"{text} a = Erf(x) y = Mul(a, x) w = Cos(z) }}"), path)
    options = ("--meta-schedule", "--tuning-cache", cache, "--tune-batches", "64", "-o", out)
    found = graphopt("optimize", path, *options, "--trials", "2", "--explain")
    assert found.status == 0, found.err
    assert "1 of 2 kernels without a template, 2 measurements; " in found.err
    assert "meta-schedule: several of its sizes are free\n    at cos" in found.err
    reused = graphopt("optimize", path, *options, "--tuning-cache-read-only")
    assert "1 of 2 kernels without a template, 0 measurements; " in reused.err
    assert graphopt("check", path, out, "--batch", "1,7,64,65").status == 0


def test_bad_words(model: Path, tmp_path: Path) -> None:
    alone = graphopt("optimize", model, "--meta-schedule")
    assert (alone.status, len(alone.errors)) == (2, 1)
    assert "--meta-schedule is a part of tuning" in alone.err
    assert graphopt("optimize", model, "--error-on-cache-miss").status == 2
    absent = graphopt(
        "optimize", model, "--tuning-cache", tmp_path / "t.db", "--tuning-cache-read-only"
    )
    assert (absent.status, "no such tuning cache" in absent.err) == (1, True)
