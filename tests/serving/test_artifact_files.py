"""The files of artifacts: what is refused, what is replaced, and what is the same every time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt.errors import ArtifactError, GraphoptError, IdError, InputError, OutputError
from graphopt.ir.graph import Graph
from graphopt.serving.artifact import Artifact
from graphopt.serving.manifest import manifest_text, read_manifest
from graphopt.testing import parse, random_inputs, run_onnxruntime

LOOKUP = """g (int64[N] ids, float[N,3] x) => (float[N,7] y) <float[10,4] table> {
    rows = Gather(table, ids)
    y = Concat<axis=1>(rows, x)
}"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return graphopt.compile(parse(LOOKUP), output=tmp_path_factory.mktemp("lookup") / "a.gopt")


@pytest.fixture
def damaged(artifact: Artifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact.path, tmp_path / "damaged.gopt"))


# ------------------------------------------------------------------ what is loaded


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("manifest.json", "", "damaged"),
        ("manifest.json", "[]", "not a graphopt manifest"),
        ("manifest.json", '{"format": 999}', "has format 999"),
        ("manifest.json", '{"format": 3, "machine": "vax"}', "compiled for vax"),
        ("model.so", "not a library", "model.so: .*compile"),
        ("weights.bin", "short", "has 5 bytes"),
    ],
)
def test_damaged(damaged: Path, file: str, content: str, message: str) -> None:
    (damaged / file).unlink()
    (damaged / file).write_text(content)
    with pytest.raises(ArtifactError, match=message):
        graphopt.load(damaged)


@pytest.mark.parametrize("file", ["manifest.json", "model.so", "weights.bin"])
def test_missing_file(damaged: Path, file: str) -> None:
    (damaged / file).unlink()
    with pytest.raises(ArtifactError):
        graphopt.load(damaged)


def test_missing_cpu_feature(damaged: Path) -> None:
    manifest = read_manifest(damaged)
    manifest["cpu_features"].append("teleport")
    (damaged / "manifest.json").write_text(manifest_text(manifest))
    with pytest.raises(ArtifactError, match=r"lacks .teleport.*x86-64-v3"):
        graphopt.load(damaged)


@pytest.mark.parametrize("features", [1, [[]], ["avx2", True]])
def test_features_that_are_no_list_of_names(damaged: Path, features: object) -> None:
    text = manifest_text({**read_manifest(damaged), "cpu_features": features})
    (damaged / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json: damaged"):
        graphopt.load(damaged)


def test_one_number_changed_in_the_manifest(damaged: Path) -> None:
    file = damaged / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["weights"][-1]["offset"] -= 4
    file.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"manifest\.json: damaged; copy it again, or compile"):
        graphopt.load(damaged)
    manifest["weights"][-1]["offset"] += 4
    file.write_text(json.dumps(manifest))  # only the form is another
    graphopt.load(damaged)


def test_a_manifest_without_a_checksum(damaged: Path) -> None:
    (damaged / "manifest.json").write_text(json.dumps(read_manifest(damaged)))
    graphopt.load(damaged)


def test_a_bit_turned_in_the_library(damaged: Path) -> None:
    data = bytearray((damaged / "model.so").read_bytes())
    data[len(data) // 2] ^= 4
    (damaged / "model.so").unlink()
    (damaged / "model.so").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.so: damaged"):
        graphopt.load(damaged)


def test_a_report_that_is_missing(damaged: Path) -> None:
    (damaged / "report.json").unlink()
    loaded = graphopt.load(damaged)
    assert isinstance(loaded, Artifact)
    with pytest.raises(ArtifactError, match=r"report\.json: cannot be read"):
        _ = loaded.report


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(GraphoptError, match="cannot be read"):
        graphopt.load(path)


def test_not_an_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        graphopt.load(tmp_path)


# ---------------------------------------------------------------- what is written


def test_the_same_bytes_every_time(example: Path, tmp_path: Path) -> None:
    """In processes that hash differently: nothing depends on the order of a set."""
    optimize = [sys.executable, "-m", "graphopt", "optimize", "--quiet", str(example), "-o"]
    for seed in (1, 2):
        hashing = os.environ | {"PYTHONHASHSEED": str(seed)}
        subprocess.run([*optimize, str(tmp_path / f"{seed}.gopt")], env=hashing, check=True)
    for file in ("model.so", "weights.bin", "model.onnx", "manifest.json"):
        first, second = ((tmp_path / f"{seed}.gopt" / file).read_bytes() for seed in (1, 2))
        assert first == second, file


def test_a_foreign_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    with pytest.raises(OutputError, match="not a graphopt artifact"):
        graphopt.compile(parse(LOOKUP), output=tmp_path / "precious")
    assert (tmp_path / "precious" / "file").read_text() == "mine"


def test_nothing_is_left_when_verification_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphopt import api

    def broken(*_: object) -> Graph:
        return parse(LOOKUP.replace("rows = ", "found = ").replace("y =", "rows = Neg(found) y ="))

    monkeypatch.setattr(api, "_optimized", broken)
    with pytest.raises(graphopt.GraphoptError, match="differs from the source"):
        api.compile(parse(LOOKUP), output=tmp_path / "out.gopt")
    assert not list(tmp_path.iterdir())


def test_compiling_again_replaces(tmp_path: Path) -> None:
    for _ in range(2):
        graphopt.compile(parse(LOOKUP), output=tmp_path / "out.gopt")
    assert [path.name for path in tmp_path.iterdir()] == ["out.gopt"]


def test_for_another_cpu(tmp_path: Path) -> None:
    compiled = graphopt.compile(parse(LOOKUP), "cpu:x86-64-v3", output=tmp_path / "out.gopt")
    assert compiled.manifest["target"] == "cpu:x86-64-v3"
    assert "avx512f" not in compiled.manifest["cpu_features"]


@pytest.mark.parametrize("target", ["onnxruntime", "reference"])
def test_portable_targets(tmp_path: Path, target: str) -> None:
    graph = parse(LOOKUP)
    result = graphopt.compile(graph, target, output=tmp_path / "out.onnx")
    given = random_inputs(graph, {"N": 3})
    assert np.array_equal(result.run(given)["y"], run_onnxruntime(graph, given)["y"])
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


def test_portable_models_check_their_inputs_too(tmp_path: Path) -> None:
    result = graphopt.compile(parse(LOOKUP), "onnxruntime", output=tmp_path / "out.onnx")
    with pytest.raises(InputError, match="missing input 'x'"):
        result.run({"ids": np.array([1])})
    with pytest.raises(IdError):
        result.run({"ids": np.array([99]), "x": np.zeros((1, 3), np.float32)})
