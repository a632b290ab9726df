"""The faster engine per batch size: recorded, chosen, and used. Times are made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt.deployment import engine_choice
from graphopt.deployment.engine_choice import record_engines
from graphopt.errors import ArtifactError, InputError, SpecError
from graphopt.ir import onnx_io
from graphopt.latency import Latency
from graphopt.serving.artifact import Artifact
from graphopt.serving.auto_engine import AutoEngine
from graphopt.testing import parse

DENSE = "(float[N,3] x) => (float[N,2] y) <float[3,2] w> { y = MatMul(x, w) }"


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    onnx_io.save(parse(DENSE), tmp_path / "dense.onnx")
    compiled = graphopt.compile(tmp_path / "dense.onnx", output=tmp_path / "dense.gopt")
    assert isinstance(compiled, Artifact)
    return compiled


Medians = list[tuple[float, float]]


@pytest.fixture
def medians(monkeypatch: pytest.MonkeyPatch) -> Medians:
    """What each measurement in turn finds, compiled and ONNX Runtime; the calls are made once."""
    found: Medians = []

    def measured(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Latency]:
        for call in calls.values():
            call()
        return {n: Latency(t, t, t, 1) for n, t in zip(calls, found.pop(0))}

    monkeypatch.setattr(engine_choice, "interleaved", measured)
    return found


def test_the_faster_one_is_recorded_and_run(artifact: Artifact, medians: Medians) -> None:
    medians += [(10, 20), (30, 20)]
    record_engines(artifact, (1, 64))
    auto = graphopt.load(artifact.path, engine="auto")
    assert auto.fastest == {1: "compiled", 64: "onnxruntime"}
    assert [auto.engine_for(batch) for batch in (0, 1, 7, 9, 64, 1000)] == [
        *["compiled"] * 3,
        *["onnxruntime"] * 3,
    ]
    for batch in (2, 50):
        feeds = {"x": np.ones((batch, 3), np.float32)}
        found, expected = auto.run(feeds), artifact.run(feeds)
        np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-6)
    with pytest.raises(InputError, match="missing input 'x'"):
        auto.run({})


def test_onnxruntime_must_lead_by_more_than_noise(artifact: Artifact, medians: Medians) -> None:
    medians += [(104, 100)]
    found = record_engines(artifact, (8,))
    assert found.manifest["engines"] == [
        {
            "batch": 8,
            "fastest": "compiled",
            "median_us": {"compiled": 104, "onnxruntime": 100},
        }
    ]


def test_other_entries_of_the_manifest_stay(artifact: Artifact, medians: Medians) -> None:
    before = artifact.manifest
    medians += [(1, 2)]
    after = dict(record_engines(artifact, (1,)).manifest)
    assert after.pop("engines")
    assert after == before


def test_a_fixed_batch_is_measured_once(tmp_path: Path, medians: Medians) -> None:
    medians += [(3, 2)]
    compiled = graphopt.compile(parse(DENSE.replace("N,", "4,")), output=tmp_path / "fixed.gopt")
    assert isinstance(compiled, Artifact)
    record_engines(compiled, (4, 64))
    auto = graphopt.load(compiled.path, engine="auto")
    assert auto.fastest == {4: "onnxruntime"}
    assert auto.run({"x": np.ones((4, 3), np.float32)})["y"].shape == (4, 2)


def test_compile_measures_where_it_is_asked_to(tmp_path: Path, medians: Medians) -> None:
    medians += [(1, 2)]
    kept = graphopt.compile(parse(DENSE), output=tmp_path / "m.gopt", latency_batches=(1,))
    assert isinstance(kept, Artifact)
    assert AutoEngine(kept).fastest == {1: "compiled"}
    medians += [(1, 2)]
    temporary = graphopt.compile(parse(DENSE), latency_batches=(1,))
    assert temporary.run({"x": np.ones((1, 3), np.float32)})["y"].shape == (1, 2)


@pytest.mark.parametrize("options", [{"oob": "clamp"}, {"target": "onnxruntime"}])
def test_what_onnxruntime_cannot_stand_in_for(tmp_path: Path, options: dict) -> None:
    with pytest.raises(SpecError, match="engines are compared for"):
        graphopt.compile(parse(DENSE), latency_batches=(1,), **options)


def test_nothing_was_measured(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match="--verify-latency"):
        graphopt.load(artifact.path, engine="auto")


def test_no_batch_size_fits(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise InputError("no")

    monkeypatch.setattr(engine_choice, "random_feeds", refuse)
    with pytest.raises(InputError, match="none of the batch sizes 1, 2"):
        record_engines(artifact, (1, 2))


def test_only_artifacts_have_engines(tmp_path: Path, artifact: Artifact) -> None:
    with pytest.raises(SpecError, match="only an artifact"):
        graphopt.load(tmp_path / "dense.onnx", engine="auto")
    with pytest.raises(SpecError, match="compiled or auto, not 'fast'"):
        graphopt.load(artifact.path, engine="fast")  # type: ignore[call-overload]


def test_one_number_for_an_input_is_refused(artifact: Artifact, medians: Medians) -> None:
    medians += [(10, 20)]
    record_engines(artifact, (1,))
    with pytest.raises(InputError, match=r"'x' has shape \(\)"):
        graphopt.load(artifact.path, engine="auto").run({"x": np.float32(1)})
