"""Programs without a virtual machine: what becomes one, and that its memory holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tvm import tirx

import graphopt
from graphopt.errors import IdError, InputError
from graphopt.serving.artifact import Artifact
from graphopt.targets.relax.build import fuse
from graphopt.targets.relax.lowering import lower
from graphopt.targets.relax.schedule import schedule
from graphopt.targets.relax.straight import RUN, straighten
from graphopt.testing import parse, random_inputs, run_onnxruntime

LAYERS = """g (float[N,6] x, int64[N] ids) => (float[N,4] y, float[N,10] z)
    <float[6,4] w, float[9,4] table> {
    rows = Gather(table, ids)
    a = MatMul(x, w)
    b = Relu(a)
    y = Add(b, rows)
    z = Concat<axis=1>(y, x)
}"""


def compiled(text: str, folder: Path) -> Artifact:
    return graphopt.compile(parse(text), output=folder / "m.gopt", verify=False)


def test_a_straight_program(tmp_path: Path) -> None:
    artifact = compiled(LAYERS, tmp_path)
    assert artifact.manifest["sizes"] == [[0, 0]]
    graph = parse(LAYERS)
    for batch in (0, 1, 2, 63, 5):
        given = random_inputs(graph, {"N": batch}, seed=batch)
        expected = run_onnxruntime(graph, given)
        for name, array in artifact.run(given).items():
            # Sums of 6 products in another order.
            np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "straight"),
    [
        (
            """g (float[N,6] x) => (float[N,3,2] y, float[N,6] z) <int64[3] shape = {0, 3, 2}> {
                y = Reshape(x, shape)
                z = Identity(x)
            }""",
            True,
        ),
        ("g (float[N,2] x) => (int64[2,M] y, float[N,2] z) { y = NonZero(x) z = Neg(x) }", True),
    ],
)
def test_results_are_the_callers_own(text: str, straight: bool, tmp_path: Path) -> None:
    artifact = compiled(text, tmp_path)
    assert (artifact.manifest["sizes"] is not None) == straight
    graph = parse(text)
    given = random_inputs(graph, {"N": 4}, seed=0)
    expected = run_onnxruntime(graph, given)
    found = artifact.run(given)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])
        others = [*given.values(), *(a for n, a in found.items() if n != name)]
        assert not any(np.shares_memory(array, other) for other in others)


def test_a_bad_id_leaves_the_program_usable(tmp_path: Path) -> None:
    artifact = compiled(LAYERS, tmp_path)
    given = random_inputs(parse(LAYERS), {"N": 3}, seed=0)
    expected = artifact.run(given)["y"]
    with pytest.raises(IdError, match="an id is out of range: Gather"):
        artifact.run({**given, "ids": np.array([0, 1, 9])})
    np.testing.assert_array_equal(artifact.run(given)["y"], expected)


def test_arrays_may_start_anywhere(tmp_path: Path) -> None:
    artifact = compiled(LAYERS, tmp_path)
    given = random_inputs(parse(LAYERS), {"N": 33}, seed=0)
    expected = artifact.run(given)
    for shift in (4, 8, 12, 20):
        room = np.zeros(given["x"].nbytes + 64, np.uint8)
        x = room[shift : shift + given["x"].nbytes].view(np.float32).reshape(given["x"].shape)
        x[...] = given["x"]
        found = artifact.run({**given, "x": x})
        np.testing.assert_array_equal(found["z"], expected["z"])


def test_the_manifest_says_where_sizes_are_read(tmp_path: Path) -> None:
    text = """g (float[2,T] x, float[N,T] w) => (float[2,N] y) {
        t = Transpose<perm=[1,0]>(w)
        y = MatMul(x, t)
    }"""
    artifact = compiled(text, tmp_path)
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    assert manifest["sizes"] == [[1, 0], [0, 1]]
    assert manifest["shaping"] == 1  # N, which the output has
    x, w = np.ones((2, 3), np.float32), np.ones((5, 3), np.float32)
    assert artifact.run({"x": x, "w": w})["y"].tolist() == [[3.0] * 5] * 2


RAGGED = """g (int64[N] first, int64[M] ids, int64[K] more) => (float[N,4] y)
    <float[9,4] table, int64[1] zero = {0}> {
    every = Concat<axis=0>(ids, more)
    rows = Gather(table, every)
    least = ReduceMin<keepdims=0>(rows, zero)
    own = Gather(table, first)
    y = Add(own, least)
}"""


def test_lengths_that_no_output_has_need_no_plan_of_their_own(tmp_path: Path) -> None:
    artifact, graph = compiled(RAGGED, tmp_path), parse(RAGGED)
    assert artifact.manifest["sizes"][: artifact.manifest["shaping"]] == [[0, 0]]
    for seed, lengths in enumerate([(3, 4), (2000, 5), (1, 1), (7, 9000), (2000, 5)]):
        given = random_inputs(graph, {"N": 2, "M": lengths[0], "K": lengths[1]}, seed=seed)
        expected = run_onnxruntime(graph, given)["y"]
        np.testing.assert_array_equal(artifact.run(given)["y"], expected)
    assert len(artifact._program._plans) == 1


FOUND = """g (float[N,3] x, bool[M] kept) =>
    (float[N,3] y, int64[2,K] places, float[L] doubled, float[N,1] z) <int64[1] one = {1}> {
    places = NonZero(x)
    at = Transpose<perm=[1,0]>(places)
    numbers = GatherND(x, at)
    rows = Compress<axis=0>(numbers, kept)
    doubled = Add(rows, rows)
    z = ReduceSum(x, one)
    y = ScatterND(x, at, numbers)
}"""


def found_inputs(rows: int, most: int, kept: int) -> dict[str, np.ndarray]:
    """`rows` of numbers up to `most`, of whose first ones that are not 0 `kept` are taken."""
    x = np.random.default_rng(rows).integers(0, most + 1, (rows, 3)).astype(np.float32)
    return {"x": x, "kept": np.arange(np.count_nonzero(x)) < kept}


def test_sizes_that_kernels_find(tmp_path: Path) -> None:
    """Room grows with what is found, at one batch size too; results stay the caller's own."""
    artifact, graph = compiled(FOUND, tmp_path), parse(FOUND)
    assert artifact.manifest["sizes"] is not None
    assert artifact.manifest["late_outputs"] == [1, 2]
    cases = ((1, 1, 0), (2, 1, 2), (900, 0, 0), (900, 1, 400), (900, 40, 2000), (3, 1, 1))
    calls = [found_inputs(*case) for case in cases]
    results = [(artifact.run(given), run_onnxruntime(graph, given)) for given in calls]
    for found, expected in results:
        assert list(found) == list(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


def test_kernels_that_find_sizes_are_timed(tmp_path: Path) -> None:
    artifact = compiled(FOUND, tmp_path)
    given = found_inputs(500, 9, 500)
    nanoseconds = artifact.profile(given)
    assert len(nanoseconds) == len(artifact.manifest["program"])


def length_of_lowered(found: int) -> int:
    """Characters of a program that finds so many sizes, of values that all live until its end."""
    numbers = ", ".join(f"int64 c{k} = {{{k}}}" for k in range(found))
    places = "\n".join(f"e{k} = Equal(x, c{k}) p{k} = NonZero(e{k})" for k in range(found))
    joined = f"p = Concat<axis=1>({', '.join(f'p{k}' for k in range(found))})"
    body = f"{{ {places} {joined} y = ReduceMax<keepdims=0>(p) }}"
    lowered = lower(parse(f"g (int64[N] x) => (int64 y) <{numbers}> {body}"))
    straight = straighten(schedule(fuse(lowered.module, lowered.emitted)[0]))
    assert straight is not None
    simplified = tirx.transform.StmtSimplify()(straight.module)
    return len(simplified[RUN].script(show_meta=False))


def test_programs_that_find_sizes_are_as_long_as_these_are_many() -> None:
    """Also once TVM has put numbers where they are used."""
    few, more, most = map(length_of_lowered, (4, 8, 16))
    assert most - more < 2.2 * (more - few)


CHECKED = """g (int64[N] ids, int64[2] shape) => (float[A,3] z)
    <float[9,2] table, float[4,3] w, int64[1] minus = {-1}> {
    at = NonZero(ids)
    flat = Reshape(at, minus)
    own = Gather(ids, flat)
    rows = Gather(table, own)
    y = Reshape(rows, shape)
    z = MatMul(y, w)
}"""


def test_what_does_not_fit_leaves_a_program_that_finds_sizes_usable(tmp_path: Path) -> None:
    artifact, graph = compiled(CHECKED, tmp_path), parse(CHECKED)
    assert artifact.manifest["late_outputs"] == [0]
    many = artifact.run({"ids": np.arange(1, 9), "shape": np.array([4, 4])})["z"]
    with pytest.raises(IdError, match="an id is out of range: Gather"):
        artifact.run({"ids": np.array([1, 9]), "shape": np.array([1, 4])})
    with pytest.raises(InputError, match="Reshape"):
        artifact.run({"ids": np.array([1, 0, 8]), "shape": np.array([3, 4])})
    with pytest.raises(InputError, match="takes to be equal are not"):
        artifact.run({"ids": np.array([1, 0, 8]), "shape": np.array([2, 2])})
    given = {"ids": np.array([1, 0, 8]), "shape": np.array([1, 4])}
    found, expected = artifact.run(given)["z"], run_onnxruntime(graph, given)["z"]
    # Sums of 4 products in another order.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert many.shape == (4, 3)
