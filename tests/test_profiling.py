"""Profiles name kernels, layers and costs; no time is judged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import graphopt as command

import graphopt
from graphopt import profiling, roofline
from graphopt.errors import ArtifactError, InputError
from graphopt.profiling import Profile, profile
from graphopt.roofline import Roofline
from graphopt.testing import parse

MODEL = """(int64[N] user, float[N,8] dense) => (float[N,4] y)
<float[50,8] users, float[8,4] w, float[4] b> {
    e = Gather(users, user)
    x = Sub(e, dense)
    s = Sin(x)
    z = Gemm(s, w, b)
    y = Relu(z)
}"""
PEAKS = Roofline(1e9, (1e9,) * 4)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "m.gopt"
    graphopt.compile(parse(MODEL), output=path)
    return path


@pytest.fixture(scope="module")
def found(artifact: Path) -> Profile:
    return profile(artifact, 16, seconds=0, peaks=PEAKS)


def test_every_kernel_is_there(found: Profile) -> None:
    ops = [op for kernel in found.kernels for op in kernel.ops]
    assert sorted(ops) == ["Gather", "Sin", "Sub", "graphopt.cpu::Dense"]
    assert all(kernel.microseconds >= 0 for kernel in found.kernels)
    assert found.total > 0
    assert found.runs == profiling.LEAST_RUNS


def test_costs_at_this_batch(found: Profile) -> None:
    by_op = {kernel.ops[-1]: kernel for kernel in found.kernels}
    dense = by_op["graphopt.cpu::Dense"]
    assert dense.flops == 16 * 4 * (2 * 8 + 2)  # a product, a bias, an activation
    assert dense.bytes == 4 * (16 * 8 + 8 * 4 + 4 + 16 * 4)
    assert dense.bound == pytest.approx(max(dense.flops, dense.bytes) / 1e3)
    fused = by_op["Sin"]
    assert fused.ops == ("Sub", "Sin")
    assert fused.bytes == 3 * 4 * 16 * 8  # what passes between the two stays in registers
    assert by_op["Gather"].bytes == 16 * (8 + 2 * 4 * 8)


def test_layers_are_named_as_in_the_model(found: Profile) -> None:
    names = {name for kernel in found.kernels for name in kernel.sources}
    assert names >= {"e", "x", "s"}


def test_profiled_and_plain_runs_agree(artifact: Path) -> None:
    loaded = graphopt.load(artifact)
    feeds = {"user": np.array([3, 4]), "dense": np.ones((2, 8), np.float32)}
    before = loaded.run(feeds)["y"].copy()
    assert len(loaded.profile(feeds)) == len(loaded.manifest["program"])
    np.testing.assert_array_equal(loaded.run(feeds)["y"], before)


def test_floor(artifact: Path, found: Profile) -> None:
    loaded = graphopt.load(artifact)
    feeds = {"user": np.zeros(16, np.int64), "dense": np.ones((16, 8), np.float32)}
    assert profiling.floor(loaded, feeds, PEAKS) == pytest.approx(found.bound, abs=0.01)


def test_inputs_are_checked(artifact: Path) -> None:
    with pytest.raises(InputError, match="missing input"):
        profile(artifact, inputs={"user": np.array([3])}, seconds=0, peaks=PEAKS)


def test_groups_of_equal_code(tmp_path: Path) -> None:
    """Two fused groups may share a function; each call is still one entry."""
    text = """(float[N,8] a, float[N,8] b) => (float[N] y, float[N] z) <int64[1] one = {1}> {
        p = Sin(a)  y = ReduceSum<keepdims=0>(p, one)
        q = Sin(b)  z = ReduceSum<keepdims=0>(q, one)
    }"""
    graphopt.compile(parse(text), output=tmp_path / "m.gopt")
    kernels = profile(tmp_path / "m.gopt", seconds=0, peaks=PEAKS).kernels
    assert [kernel.ops for kernel in kernels] == [("Sin", "ReduceSum")] * 2


def test_loops_have_no_profile(tmp_path: Path) -> None:
    text = """(float[N] x) => (float[K] y) { k = NonZero(x)  f = Cast<to=1>(k)
        y = ReduceSum<keepdims=0>(f) }"""
    graphopt.compile(parse(text.replace("float[K] y", "float y")), output=tmp_path / "m.gopt")
    with pytest.raises(ArtifactError, match="cannot be profiled"):
        profile(tmp_path / "m.gopt", seconds=0, peaks=PEAKS)


def test_command(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "roofline", lambda: PEAKS)
    shown = command("profile", artifact, "--batch", "4", "--seconds", "0")
    assert shown.status == 0, shown.err
    assert "dense" in shown.out
    assert "whole call" in shown.out
    parsed = json.loads(command("profile", artifact, "--seconds", "0", "--json").out)
    assert parsed["batch"] == 64
    assert len(parsed["peaks"]["bytes"]) == len(roofline.SIZES)
    assert parsed["kernels"][0]["kernel"]
