"""Batches run in parts: the same answers, the same errors, and none where samples could meet."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphopt
from graphopt.errors import IdError, InputError
from graphopt.serving import runtime, splitting
from graphopt.serving.artifact import Artifact
from graphopt.testing import parse, random_inputs

MODEL = """g (int64[N] ids, float[N,256] x, float[256] user) => (float[N,256] y, int64[N] copy)
    <float[9,256] t, float[256,256] w> {
    rows = Gather(t, ids)
    h = MatMul(x, w)
    s = Add(h, rows)
    y = Add(s, user)
    copy = Identity(ids)
}"""
RECURRENT = """g (float[N,5,6] x, int32[N] lens) => (float[N,5,16] y, float[N,16] z)
    <float[1,48,6] w, float[1,48,16] r, float[1,64,6] v, float[1,64,16] s,
     int64[3] steps = {5, -1, 16}, int64[2] flat = {-1, 16}> {
    t = Transpose<perm=[1,0,2]>(x)
    a, ah = GRU<hidden_size=16>(t, w, r, , lens)
    b, bh, bc = LSTM<hidden_size=16>(t, v, s, , , ah)
    d = Reshape(b, steps)
    y = Transpose<perm=[1,0,2]>(d)
    z = Reshape(bc, flat)
}"""
MEAN = """g (float[N,3] x) => (float[N,3] y) <int64[1] a = {0}> {
    m = ReduceMean(x, a)
    y = Sub(x, m)
}"""


@pytest.fixture(autouse=True)
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are split, whether that is faster or not."""
    monkeypatch.setattr(splitting.Pace, "_way", lambda pace, rows: 1)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    output = tmp_path_factory.mktemp("split") / "m.gopt"
    return graphopt.compile(parse(MODEL), output=output, verify=False)


def feeds(batch: int) -> dict[str, np.ndarray]:
    return random_inputs(parse(MODEL), {"N": batch}, seed=batch)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [0, 1, 31, 32, 33, 257])
def test_the_same_answers(artifact: Artifact, batch: int, threads: int) -> None:
    assert artifact.splits
    given = feeds(batch)
    whole, parts = artifact.run(given), artifact.run(given, threads=threads)
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array)


def test_sequences_of_some_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = random_inputs(parse(RECURRENT), {"N": 70})
    given["lens"] = np.arange(70, dtype=np.int32) % 6
    whole = graphopt.compile(parse(RECURRENT), output=tmp_path / "m.gopt", verify=False)
    assert whole.splits
    expected, parts = whole.run(given), whole.run(given, threads=3)
    monkeypatch.setattr(runtime, "PIECE_BYTES", 1 << 12)
    artifact = Artifact.load(tmp_path / "m.gopt")
    pieces = artifact.run(given)
    for name, array in expected.items():
        np.testing.assert_array_equal(parts[name], array)
        np.testing.assert_array_equal(pieces[name], array)
    program = artifact._program
    assert isinstance(program, runtime.StraightProgram)
    assert max(plan.pieces for plan in program._plans.values()) == 70 // runtime.MIN_ROWS


@pytest.mark.parametrize("threads", [1, 2])
def test_pieces_whose_values_stay_in_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    given = feeds(257)
    whole = graphopt.compile(parse(MODEL), output=tmp_path / "m.gopt", verify=False)
    expected = whole.run(given)
    monkeypatch.setattr(runtime, "PIECE_BYTES", 1 << 14)
    artifact = Artifact.load(tmp_path / "m.gopt")
    found = artifact.run(given, threads=threads)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    program = artifact._program
    assert isinstance(program, runtime.StraightProgram)
    assert max(plan.pieces for plan in program._plans.values()) == 257 // runtime.MIN_ROWS
    assert program._room.size < 2 * (1 << 14) + 17 * 256 * 4
    with pytest.raises(InputError):
        artifact.run(given | {"ids": given["ids"][:256]})
    given["ids"][256] = 9
    with pytest.raises(IdError, match="an id is out of range"):
        artifact.run(given, threads=threads)


def test_the_calling_thread_does_its_part_only(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[int, int]] = []
    into = runtime.StraightProgram.into

    def noting(program: runtime.StraightProgram, inputs: Any, results: Any) -> None:
        done.append((threading.get_ident(), len(results[0])))
        into(program, inputs, results)

    monkeypatch.setattr(runtime.StraightProgram, "into", noting)
    artifact.run(feeds(4096), threads=4)
    assert [rows for _, rows in done] == [1024] * 4
    assert [thread for thread, _ in done].count(threading.get_ident()) == 1


def test_errors_come_from_every_part(artifact: Artifact) -> None:
    for place in (0, 99):
        given = feeds(100)
        given["ids"][place] = 9
        with pytest.raises(IdError, match="an id is out of range"):
            artifact.run(given, threads=4)


def test_sizes_are_checked_before_they_are_split(artifact: Artifact) -> None:
    given = feeds(100)
    with pytest.raises(InputError, match="has 100 on axis 0 where input 'ids' has 90"):
        artifact.run({**given, "ids": given["ids"][:90]}, threads=4)


def test_lists_are_split_too(artifact: Artifact) -> None:
    given = feeds(64)
    found = artifact.run({**given, "ids": given["ids"].tolist()}, threads=2)
    np.testing.assert_array_equal(found["y"], artifact.run(given)["y"])


def test_samples_that_meet_are_not_split(tmp_path: Path) -> None:
    artifact = graphopt.compile(parse(MEAN), output=tmp_path / "m.gopt", verify=False)
    assert not artifact.splits
    x = np.arange(300, dtype=np.float32).reshape(100, 3)
    np.testing.assert_array_equal(artifact.run({"x": x}, 4)["y"], artifact.run({"x": x})["y"])


def test_threads_must_be_positive(artifact: Artifact) -> None:
    with pytest.raises(InputError, match="threads must be a whole number of at least 1, not 0"):
        artifact.run(feeds(1), threads=0)


def test_many_callers_that_split(artifact: Artifact) -> None:
    given = [feeds(batch) for batch in (40, 64, 100)]
    expected = [artifact.run(g)["y"] for g in given]
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(20):
            if not np.array_equal(artifact.run(given[k], threads=3)["y"], expected[k]):
                wrong.append(k)

    callers = [threading.Thread(target=work, args=(k % 3,)) for k in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_after_a_fork(artifact: Artifact) -> None:
    given = feeds(64)
    expected = artifact.run(given, threads=2)["y"]
    child = os.fork()
    if child == 0:
        same = np.array_equal(artifact.run(given, threads=2)["y"], expected)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_input_with_samples(tmp_path: Path) -> None:
    text = "(float[4,3] x) => (float[4,3] y) { y = Sin(x) }"
    artifact = graphopt.compile(parse(text), output=tmp_path / "m.gopt", verify=False)
    x = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(artifact.run({"x": x}, 4)["y"], artifact.run({"x": x})["y"])
