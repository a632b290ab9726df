"""`graphopt run`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from command import graphopt


def test_shows_the_first_values(model: Path, inputs: Path) -> None:
    found = graphopt("run", model, "--inputs", inputs)
    assert (found.status, found.err) == (0, "")
    head, row = found.out.splitlines()
    assert head.split() == ["output", "dtype", "shape", "values"]
    assert row.split()[:4] == ["score", "float32", "[2,", "1]"]


def test_many_values_are_cut(model: Path) -> None:
    out = graphopt("run", model, "--random", "--batch", 20).out
    assert "[20, 1]" in out
    assert out.rstrip().endswith("…")


def test_random_inputs_follow_the_seed(model: Path) -> None:
    one, same = (graphopt("run", model, "--random", "--seed", 1).out for _ in range(2))
    assert one == same
    assert one != graphopt("run", model, "--random", "--seed", 2).out


def test_writes_all_outputs(model: Path, inputs: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.npz"
    for _ in range(2):  # an earlier file is replaced
        found = graphopt("run", model, "--inputs", inputs, "-o", path)
        assert (found.status, found.out) == (0, "")
    assert np.load(path)["score"].shape == (2, 1)
    assert {p.name for p in tmp_path.iterdir()} == {"clicks.onnx", "inputs.npz", "out.npz"}


def test_artifact_and_model_agree(model: Path, inputs: Path, tmp_path: Path) -> None:
    assert graphopt("optimize", model, "-q").status == 0
    for source, name in ((model, "a.npz"), (model.with_suffix(".gopt"), "b.npz")):
        found = graphopt("run", source, "--inputs", inputs, "-o", tmp_path / name)
        assert found.status == 0, found.err
    a, b = (np.load(tmp_path / name)["score"] for name in ("a.npz", "b.npz"))
    np.testing.assert_allclose(a, b, rtol=1e-5)
