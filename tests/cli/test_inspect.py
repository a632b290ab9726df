"""`graphopt inspect`."""

from __future__ import annotations

import json
from pathlib import Path

from command import graphopt


def test_everything_is_shown(model: Path) -> None:
    found = graphopt("inspect", model, "--batch", 8)
    assert (found.status, found.err) == (0, "")
    for text in (
        "clicks.onnx",
        "[N, 3]",
        "Tables: 1, 3.2 kB",
        "ids[:, 0]",
        "sizes: N=8",
        "Sigmoid",
    ):
        assert text in found.out, text


def test_json(model: Path) -> None:
    data = json.loads(graphopt("inspect", model, "--json").out)
    assert data["tables"][0]["rows"] == 100
    assert data["parameters"] == 813


def test_artifact(model: Path) -> None:
    assert graphopt("optimize", model, "-q").status == 0
    found = graphopt("inspect", model.with_suffix(".gopt"))
    assert found.status == 0, found.err
    for text in ("(artifact)", "target: cpu", "oob: error", "model.so", "weights.bin", "users"):
        assert text in found.out, text


def test_other_sizes(tmp_path: Path) -> None:
    from graphopt.ir import onnx_io
    from graphopt.testing import parse

    onnx_io.save(parse("(float[N,L] x) => (float y) { y = ReduceSum(x) }"), tmp_path / "m.onnx")
    assert "sizes: L=1, N=2" in graphopt("inspect", tmp_path / "m.onnx", "--batch", 2).out
    assert "sizes: L=9, N=1" in graphopt("inspect", tmp_path / "m.onnx", "--size", "L=9").out


def test_a_size_that_is_not_there(model: Path) -> None:
    found = graphopt("inspect", model, "--size", "M=9")
    assert found.status == 2
    assert found.errors == ["graphopt: error: the model has no size called 'M'; there are: N"]


def test_only_the_largest_tables_are_listed(tmp_path: Path) -> None:
    from graphopt.ir import onnx_io
    from graphopt.testing import parse

    count = 33
    tables = ", ".join(f"float[9,2] t{k}" for k in range(count))
    body = " ".join(f"e{k} = Gather(t{k}, ids)" for k in range(count))
    every = ", ".join(f"e{k}" for k in range(count))
    text = f"(int64[N] ids) => (float[N,66] y) <{tables}> {{ {body} y = Concat<axis=1>({every}) }}"
    onnx_io.save(parse(text), tmp_path / "m.onnx")
    out = graphopt("inspect", tmp_path / "m.onnx").out
    assert "Tables: 33" in out
    assert "and 3 smaller ones" in out


def test_what_is_not_counted_is_said(tmp_path: Path) -> None:
    from graphopt.ir import onnx_io
    from graphopt.testing import parse

    onnx_io.save(parse("(float[N] x) => (int64[1,K] y) { y = NonZero(x) }"), tmp_path / "m.onnx")
    assert "1 not counted" in graphopt("inspect", tmp_path / "m.onnx").out
