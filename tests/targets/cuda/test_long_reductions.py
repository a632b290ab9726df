"""Long reductions are shared by many threads, also those that TVM's schedules leave to one."""

from __future__ import annotations

import re
from pathlib import Path

import gpu_emulator
import numpy as np
import onnx
import pytest

import graphopt
from graphopt.ir import onnx_io
from graphopt.testing import run_onnxruntime

from .conftest import THOROUGH, Runner, assert_close
from .mutants import Mutation, mutant

RNG = np.random.default_rng(12)
TEXT = """<ir_version: 10, opset_import: ["": 18]>
agraph (float[n, 3] x) => (float[1, 3] a, float b, float[3] c, float[1, 3] d, int64[1, 3] e,
    int64[3] f, float[n, 3] g) {
    a = ReduceMax (x, first)
    b = ReduceMin <keepdims = 0> (x)
    c = ReduceProd <keepdims = 0> (x, first)
    d = ReduceLogSumExp (x, first)
    e = ArgMax <axis = 0> (x)
    f = ArgMin <axis = 0, keepdims = 0, select_last_index = 1> (x)
    g = Softmax <axis = 0> (x)
}"""


def test_along_the_batch(run_model: Runner) -> None:
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "first"))
    graph = onnx_io.from_proto(model)
    feeds = [{"x": RNG.uniform(0.9, 1.1, (n, 3)).astype(np.float32)} for n in (1, 7, 700)]
    for feed in feeds[1:]:
        feed["x"][[2, 5]] = feed["x"][[5, 2]] * 2  # which are the greatest
    sources: list[str] = []
    results = run_model(graph, *feeds, edit=lambda s: sources.append(s) or s)
    wanted = [run_onnxruntime(graph, feed) for feed in feeds]
    assert_close(results, wanted)
    for found, expected in zip(results, wanted):
        for name in "abef":
            np.testing.assert_array_equal(found[name], expected[name])
    # No loop goes over all n: of 256 threads each has a share.
    assert not re.search(r"for \(int64_t \w+ = \(int64_t\)0; \w+ < n; ", sources[0])


def test_nan_stays(run_text: Runner) -> None:
    text = """agraph (float[n] x) => (float a, int64 b) {
        a = ReduceMin <keepdims = 0> (x)
        b = ArgMax <keepdims = 0> (x)
    }"""
    x = RNG.standard_normal(900).astype(np.float32)
    x[777] = np.nan
    (found,) = run_text(text, {"x": x}, mode=gpu_emulator.Mode())
    assert np.isnan(found["a"]) and found["b"] == 777


@pytest.mark.parametrize(
    "mutation",
    [
        Mutation("max_kernel", r"< n\)", "< n - 1)"),
        Mutation("max_kernel", r"n \+ \(int64_t\)255", "n"),
        Mutation("max_kernel_1", r"< (\(int64_t\))?16;", "< 15;"),
    ],
)
def test_broken_shares_are_caught(mutation: Mutation, emulation: Path) -> None:
    graph = onnx_io.from_proto(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 18]> agraph (float[n] x) => (float y) {'
            " y = ReduceMax <keepdims = 0> (x) }"
        )
    )
    path = emulation / "reduced.gopt"
    if not path.exists():
        with gpu_emulator.compiled_for_emulation(emulation, races=True):
            graphopt.compile(graph, "cuda", output=path, passes="O0", verify=False)
    x = np.arange(700, dtype=np.float32)
    for at in range(0, 700, 233):
        feed = {"x": np.roll(x, at)}
        assert_close(gpu_emulator.run(path, [feed], emulation), [run_onnxruntime(graph, feed)])
    with mutant(path, emulation, mutation.applied):
        found = [
            gpu_emulator.run(path, [{"x": np.roll(x, at)}], emulation)[0]["y"]
            for at in range(0, 700, 13)
        ]
    assert any(y != 699 for y in found)


def test_turned_sequences(run_text: Runner) -> None:
    text = """agraph (float[t, n, 2] x, int64[n] k) => (float[t, n, 2] y) {
        y = ReverseSequence (x, k)
    }"""
    x, k = RNG.standard_normal((5, 40, 2)).astype(np.float32), RNG.integers(0, 6, 40)
    (found,) = run_text(text, {"x": x, "k": k}, mode=THOROUGH)
    for n, length in enumerate(k):
        np.testing.assert_array_equal(found["y"][:length, n], x[:length, n][::-1])
        np.testing.assert_array_equal(found["y"][length:, n], x[length:, n])
    k[3] = 6
    with pytest.raises(gpu_emulator.LaunchError, match=r"IdError.*ReverseSequence"):
        run_text(text, {"x": x, "k": k}, mode=gpu_emulator.Mode())
