"""Small batches on several threads: the same bits, whoever comes to help."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphopt
from graphopt.errors import IdError
from graphopt.serving import splitting
from graphopt.serving.artifact import Artifact
from graphopt.serving.runtime import StraightProgram
from graphopt.testing import parse, random_inputs

# Two wide layers, one of them with a panel that is left over, and kernels that are not shared
# before, between and after them. The mean makes samples depend on one another.
MODEL = """g (int64[N] ids, float[N,512] x) => (float[N,24] y) <int64[1] a = {0},
    float[9,512] t, float[512,1032] u, float[1032,512] v, float[512,24] w> {
    rows = Gather(t, ids)
    s = Add(rows, x)
    h = MatMul(s, u)
    r = Relu(h)
    m = ReduceMean(r, a)
    d = Sub(r, m)
    k = MatMul(d, v)
    y = MatMul(k, w)
}"""
ONE = "g (float[N,512] x) => (float[N,1024] y) <float[512,1024] w> { y = MatMul(x, w) }"
NARROW = "g (float[N,512] x) => (float[N,512] y) <float[512,512] w> { y = MatMul(x, w) }"


@pytest.fixture(autouse=True)
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share layers, whether that is faster or not."""
    monkeypatch.setattr(splitting.Pace, "_way", lambda pace, rows: 1)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    output = tmp_path_factory.mktemp("shared") / "m.gopt"
    return graphopt.compile(parse(MODEL), output=output, verify=False)


def feeds(batch: int) -> dict[str, np.ndarray]:
    return random_inputs(parse(MODEL), {"N": batch}, seed=batch)


def program_of(artifact: Artifact) -> StraightProgram:
    assert isinstance(artifact._program, StraightProgram) and artifact._program.shared_bytes
    return artifact._program


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("batch", [0, 1, 7, 40])
def test_the_same_bits(artifact: Artifact, batch: int, threads: int) -> None:
    assert not artifact.splits
    given = feeds(batch)
    expected = artifact.run(given)["y"]
    for _ in range(5):
        np.testing.assert_array_equal(artifact.run(given, threads=threads)["y"], expected)


def test_a_bad_id_ends_the_help(artifact: Artifact) -> None:
    given = feeds(3)
    expected = artifact.run(given)["y"]
    with pytest.raises(IdError, match="an id is out of range: Gather"):
        artifact.run({**given, "ids": np.array([0, 1, 9])}, threads=3)
    np.testing.assert_array_equal(artifact.run(given, threads=3)["y"], expected)


def late(*_: Any) -> Future[Any]:
    """A thread that never comes."""
    return Future()


def tardy(share: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """A thread that comes when all is done."""
    begun = threading.Event()

    def work() -> None:
        begun.set()
        time.sleep(0.05)
        share(*arguments)

    future = ThreadPoolExecutor(1).submit(work)
    begun.wait()
    return future


@pytest.mark.parametrize("start", [late, tardy])
def test_nobody_waits_for_help(artifact: Artifact, start: Callable[..., Future[Any]]) -> None:
    given = feeds(2)
    inputs = [given[name] for name in ("ids", "x")]
    (found,) = program_of(artifact).helped(inputs, start, helpers=2)
    np.testing.assert_array_equal(found, artifact.run(given)["y"])


def test_a_helper_computes_what_is_left(tmp_path: Path) -> None:
    artifact = graphopt.compile(parse(ONE), output=tmp_path / "m.gopt", verify=False)
    program = program_of(artifact)
    x = random_inputs(parse(ONE), {"N": 3}, seed=0)["x"]
    expected = artifact.run({"x": x})["y"]
    y, progress = np.zeros_like(expected), np.zeros(program._progress, np.int64)
    progress[:3] = 1, 1, 1  # the layer may be computed, its first part is done
    tensors = [program._convert(array) for array in (x, y)]
    room = program._workspace(64)
    assert program._share is not None
    program._share(*tensors, program._weights, room, program._convert(progress), 1)
    parts = len(progress) - 2
    assert parts > 4 and progress[1] == parts and progress[2:].all()
    left = np.flatnonzero(y.any(axis=0))
    assert left[0] == 1024 // parts  # the first part was left alone
    np.testing.assert_array_equal(y[:, left[0] :], expected[:, left[0] :])


def test_narrow_layers_are_not_shared(tmp_path: Path) -> None:
    artifact = graphopt.compile(parse(NARROW), output=tmp_path / "m.gopt", verify=False)
    assert artifact.manifest["shared"] is None
    x = random_inputs(parse(NARROW), {"N": 3}, seed=0)
    np.testing.assert_array_equal(artifact.run(x, threads=2)["y"], artifact.run(x)["y"])
