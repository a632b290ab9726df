"""Fewer units, thin factors, tables and layers in few bits: all of it on a trained model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt.pipeline.report import Report
from graphopt.serving.loading import load
from graphopt.serving.manifest import PORTABLE
from graphopt.targets.base import find
from graphopt.targets.cpu.target import CpuTarget
from graphopt.targets.portable import OnnxModel

CTR = Path(__file__).parents[2] / "examples" / "ctr"
LIMIT = 0.005


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    path, report = tmp_path_factory.mktemp("ctr") / "small.gopt", Report()
    budget = graphopt.Budget(CTR / "eval.npz", LIMIT, "auc")
    with pytest.MonkeyPatch.context() as patched:  # so that no clock decides what is taken
        patched.setattr(CpuTarget, "runs_here", False)
        graphopt.compile(CTR / "model.onnx", budget=budget, output=path, report=report)
    return path, report


def test_every_kind_of_change_is_made(compressed: tuple[Path, Report]) -> None:
    made = {record.spec.partition("{")[0] for record in compressed[1].passes if record.changed}
    assert made >= {
        "prune-units",
        "factorize-low-rank",
        "quantize-tables",
        "quantize-weights",
    }
    fast = find("cpu").multiplies_bytes
    assert ("quantize-activations" in made) == fast
    before, after = compressed[1].facts["constant_bytes"]
    assert after < 0.25 * before


def test_the_budget_holds_for_the_whole_compiled_and_portable(
    compressed: tuple[Path, Report],
) -> None:
    path, report = compressed
    assert report.verification is not None and report.verification["drop"] <= LIMIT
    original = OnnxModel(CTR / "model.onnx")
    budget = graphopt.Budget(CTR / "eval.npz", LIMIT, "auc")
    judge = budget.judges(original, original.signature)[1]
    assert judge.data.rows == report.verification["rows"]
    for model in (load(path), OnnxModel(path / PORTABLE)):
        assert judge.drop(model) <= LIMIT  # type: ignore[arg-type]


def test_the_scores_of_a_row_depend_on_no_other_row(compressed: tuple[Path, Report]) -> None:
    artifact, data = load(compressed[0]), dict(np.load(CTR / "eval.npz"))
    feeds = {spec.name: data[spec.name][:37] for spec in artifact.signature.inputs}
    together = artifact.run(feeds)["ctr"]
    for row in (0, 1, 17, 36):
        alone = artifact.run({name: array[row : row + 1] for name, array in feeds.items()})
        np.testing.assert_array_equal(alone["ctr"][0], together[row])
