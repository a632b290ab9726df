"""Compiled artifacts: what they hold, what they do, what they refuse."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphopt
from graphopt.analysis.batch_sizes import batch_sizes
from graphopt.errors import (
    ArtifactError,
    IdError,
    InputError,
    SpecError,
)
from graphopt.ir.types import dtype_to_numpy
from graphopt.serving.artifact import Artifact
from graphopt.serving.runtime import ffi
from graphopt.serving.signature import aligned_copy
from graphopt.targets.portable import OnnxModel
from graphopt.testing import parse, random_inputs

LOOKUP = """g (int64[N] ids, float[N,3] x) => (float[N,7] y) <float[10,4] table> {
    rows = Gather(table, ids)
    y = Concat<axis=1>(rows, x)
}"""


@pytest.fixture(scope="module")
def artifact(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return graphopt.compile(example, output=tmp_path_factory.mktemp("ctr") / "ctr.gopt")


def feeds(example: Path, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    graph = graphopt.load(example)
    return random_inputs(graph, batch_sizes(graph, batch), seed)


@pytest.mark.parametrize("batch", [1, 2, 7, 64, 513])
def test_one_artifact_serves_every_batch(artifact: Artifact, example: Path, batch: int) -> None:
    given = feeds(example, batch)
    expected = OnnxModel(example).run(given)
    found = artifact.run(given)
    # Sums of about a hundred float32 terms in another order.
    np.testing.assert_allclose(found["ctr"], expected["ctr"], rtol=1e-4, atol=1e-5)


def test_empty_batch(artifact: Artifact, example: Path) -> None:
    given = {name: array[:0] for name, array in feeds(example, 2).items()}
    assert artifact.run(given)["ctr"].shape == (0, 1)


def test_the_portable_model_is_valid_and_agrees(artifact: Artifact, example: Path) -> None:
    path = artifact.path / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    given = feeds(example, 5)
    expected = OnnxModel(example).run(given)["ctr"]
    np.testing.assert_allclose(OnnxModel(path).run(given)["ctr"], expected, rtol=1e-4, atol=1e-5)


def test_portable_and_compiled_share_their_weights(artifact: Artifact) -> None:
    portable = onnx.load(str(artifact.path / "model.onnx"), load_external_data=False)
    shared = 0
    places = {(w["offset"], w["nbytes"]) for w in artifact.manifest["weights"]}
    for tensor in portable.graph.initializer:
        entries = {e.key: e.value for e in tensor.external_data}
        if entries:
            assert entries["location"] == "weights.bin"
            place = int(entries["offset"]), int(entries["length"])
            shared += place[1] * (place in places)
    assert shared >= sum(table["bytes"] for table in artifact.report["tables"])


def test_the_report(artifact: Artifact, example: Path) -> None:
    report = artifact.report
    assert report["facts"]["source"] == example.name
    assert len(report["facts"]["source_sha256"]) == 64
    assert report["facts"]["versions"]["apache-tvm"] == "0.27.0.post1"
    assert report["verification"]["agrees"] is True
    assert any(record["rewrites"] for record in report["passes"])
    assert {"load", "optimize", "lower", "build", "write", "verify"} <= report["stages"].keys()
    assert len(report["tables"]) == 11


def test_several_threads(artifact: Artifact, example: Path) -> None:
    given = [feeds(example, batch, seed) for seed, batch in enumerate((1, 5, 64, 3))]
    expected = [artifact.run(g)["ctr"].copy() for g in given]
    wrong: list[object] = []

    def work(k: int) -> None:
        for _ in range(100):
            found = artifact.run(given[k])["ctr"]
            if not np.array_equal(found, expected[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k % 4,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_outputs_are_the_callers_own(artifact: Artifact, example: Path) -> None:
    given = feeds(example, 4)
    first = artifact.run(given)["ctr"]
    kept = first.copy()
    artifact.run(feeds(example, 4, seed=1))
    assert np.array_equal(first, kept)
    first[...] = 0
    assert np.array_equal(artifact.run(given)["ctr"], kept)


# ----------------------------------------------------------------------- ids


def lookup(oob: str) -> graphopt.Artifact:
    return graphopt.compile(parse(LOOKUP), oob=oob)


def table() -> np.ndarray:
    (value,) = [v for v in parse(LOOKUP).constants() if v.shape == (10, 4)]
    assert value.const is not None
    return value.const


BAD_IDS = [10, -11, 2**31, -(2**31), 2**63 - 1, -(2**63)]


@pytest.fixture(scope="module")
def strict() -> graphopt.Artifact:
    return lookup("error")


@pytest.mark.parametrize("bad", BAD_IDS)
def test_a_bad_id_is_an_error(strict: graphopt.Artifact, bad: int) -> None:
    ids = np.array([1, bad, 2])
    with pytest.raises(IdError, match=r"out of range.*rows.*10"):
        strict.run({"ids": ids, "x": np.zeros((3, 3), np.float32)})
    good = strict.run({"ids": np.array([1, -1, 2]), "x": np.zeros((3, 3), np.float32)})
    assert np.array_equal(good["y"][:, :4], table()[[1, -1, 2]])


@pytest.mark.parametrize("oob", ["clamp", "zero"])
def test_a_bad_id_is_clamped_or_zero(oob: str) -> None:
    compiled = lookup(oob)
    ids = np.array([*BAD_IDS, 3, -1])
    found = compiled.run({"ids": ids, "x": np.zeros((8, 3), np.float32)})["y"][:, :4]
    assert np.array_equal(found[6:], table()[[3, -1]])
    nearest = table()[np.where(ids[:6] < 0, 0, 9)]
    expected = nearest if oob == "clamp" else np.zeros((6, 4))
    assert np.array_equal(found[:6], expected)


def test_unknown_policy() -> None:
    with pytest.raises(SpecError, match="oob is one of error, clamp, zero"):
        graphopt.compile(parse(LOOKUP), oob="ignore")  # type: ignore[arg-type]


# --------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", ["float", "double", "float16", "bfloat16", "int32", "bool"])
def test_dtypes_pass_through(dtype: str) -> None:
    graph = parse(f"g ({dtype}[N,3] x) => ({dtype}[3,N] y) {{ y = Transpose<perm=[1,0]>(x) }}")
    compiled = graphopt.compile(graph, verify=False)
    name = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    x = np.arange(6).reshape(2, 3).astype(dtype_to_numpy(name))
    found = compiled.run({"x": x})["y"]
    assert found.dtype == x.dtype
    assert np.array_equal(found, x.T)


def test_unaligned_and_strided_inputs() -> None:
    graph = parse("g (float[N,5] x) => (float[N,5] y) { y = Neg(x) }")
    compiled = graphopt.compile(graph)
    room = np.arange(200, dtype=np.float32)
    for start in (0, 1, 3):
        x = room[start : start + 20].reshape(4, 5)
        assert np.array_equal(compiled.run({"x": x})["y"], -x)
    wide = room.reshape(10, 20)[:, 3:8]
    assert np.array_equal(compiled.run({"x": wide})["y"], -wide)
    aligned = aligned_copy(wide)
    assert np.array_equal(compiled.run({"x": aligned})["y"], -wide)


@pytest.mark.parametrize(
    ("feeds", "says"),
    [
        ([[1.0]], "a dict of an array per input name, not list"),
        (np.zeros((2, 2)), "a dict of an array per input name, not ndarray"),
        (None, "a dict of an array per input name, not NoneType"),
        ({"x": [[1.0], [1.0, 2.0]]}, "'x': its rows differ in length"),
        ({"x": None}, "'x' is object"),
        ({"x": 1.0}, "'x' is float64"),
    ],
)
def test_what_is_no_array(feeds: Any, says: str) -> None:
    compiled = graphopt.compile(parse("g (float[N,2] x) => (float[N,2] y) { y = Neg(x) }"))
    for engine in (compiled, graphopt.compile(compiled.path / "model.onnx", "onnxruntime")):
        with pytest.raises(InputError, match=says):
            engine.run(feeds)


def test_what_fails_within_the_program_is_said(
    artifact: Artifact, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, raised, says in (
        (ValueError("no view of it\nat 0x0"), InputError, "fails on these inputs: no view of it$"),
        (AttributeError(), InputError, "fails on these inputs: AttributeError"),
        (SystemError("std::bad_alloc"), MemoryError, "more memory than there is"),
    ):
        monkeypatch.setitem(artifact._on_threads, 1, _failing(error))
        with pytest.raises(raised, match=says):
            artifact.run(feeds(example, 2))


def _failing(error: Exception) -> Callable[[object], list[np.ndarray]]:
    def program(inputs: object) -> list[np.ndarray]:
        raise error

    return program


@pytest.mark.parametrize("act", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_is_loaded_is_not_pickled(artifact: Artifact, act: Callable[[object], Any]) -> None:
    with pytest.raises(TypeError, match=r"ctr\.gopt.* cannot be pickled or copied; load it"):
        act(artifact)
    with pytest.raises(TypeError, match=r"model\.onnx: cannot be pickled"):
        act(OnnxModel(artifact.path / "model.onnx"))


def test_a_tensor_without_data() -> None:
    torch = pytest.importorskip("torch")
    compiled = graphopt.compile(
        parse("g (float[N,2] x) => (float[N,2] y) { y = Neg(x) }"), "onnxruntime"
    )
    with pytest.raises(InputError, match="'x' cannot be read through DLPack"):
        compiled.run({"x": torch.empty(3, 2, device="meta")})


@pytest.mark.parametrize("threads", [0, -1, None, "2", 1.5])
def test_numbers_of_threads_that_are_none(artifact: Artifact, threads: Any) -> None:
    with pytest.raises(InputError, match="threads must be a whole number of at least 1"):
        artifact.run({}, threads=threads)


def test_arrays_of_other_frameworks() -> None:
    artifact = graphopt.compile(parse("(float[N,3] x) => (float[N,3] y) { y = Neg(x) }"))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(artifact.run({"x": ffi().from_dlpack(x)})["y"], -x)


def test_outputs_on_a_device_take_an_artifact_for_it() -> None:
    artifact = graphopt.compile(parse("(float[N,3] x) => (float[N,3] y) { y = Neg(x) }"))
    assert isinstance(artifact, Artifact)
    with pytest.raises(ArtifactError, match="not loaded on a GPU; compile it with --target cuda"):
        artifact.run_device({"x": np.ones((1, 3), np.float32)})
    with pytest.raises(SpecError, match="gpu_memory_share is between 0 and 1, not 2"):
        graphopt.load(artifact.path, gpu_memory_share=2)


def test_graph_without_weights_and_with_constant_output() -> None:
    graph = parse(
        "g (float[N] x) => (float[N] y, float[2] c) <float[2] k = {1, 2}>"
        "{ y = Neg(x) c = Identity(k) }"
    )
    compiled = graphopt.compile(graph)
    found = compiled.run({"x": np.ones(2, np.float32)})
    assert found["c"].tolist() == [1, 2]


def test_inputs_whose_sizes_do_not_fit_together() -> None:
    """Sizes that only some op needs to agree, and that no name says of."""
    graph = parse(
        "(float[N] x, float[M] z) => (float[K] y) { c = Concat<axis=0>(x, x) y = Add(c, z) }"
    )
    compiled = graphopt.compile(graph)
    given = {"x": np.ones(2, np.float32), "z": np.ones(4, np.float32)}
    assert compiled.run(given)["y"].tolist() == [2, 2, 2, 2]
    with pytest.raises(InputError, match=r"do not fit together: sizes .* do not broadcast"):
        compiled.run({**given, "z": np.ones(3, np.float32)})
