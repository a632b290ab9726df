"""What the execution check is worth: broken copies of generated code must be caught."""

from __future__ import annotations

from pathlib import Path

import gpu_emulator
import numpy as np
import onnx
import pytest

import graphopt

from .conftest import THOROUGH, Feeds, assert_close
from .mutants import Mutation, mutant

# Products of float64 are left to TVM's schedules, those of float32 are a kernel of our own.
MODEL = """<ir_version: 10, opset_import: ["": 21]>
agraph (double[n, 24] x, double[24, 48] w, int64[n] ids) => (double[n, 1] y, float[n, 40] e) {
    h = MatMul (x, w)
    r = Relu (h)
    e = Gather (table, ids)
    y = ReduceSum <keepdims = 1> (r, one)
}"""
RNG = np.random.default_rng(3)
WEIGHTS, TABLE = RNG.standard_normal((24, 48)), RNG.standard_normal((9, 40), np.float32)
# Rows that fill no block, and results that end where their memory does (at a multiple of 64 bytes).
FEED: Feeds = {
    "x": RNG.standard_normal((36, 24)), "w": WEIGHTS, "ids": np.arange(36) % 9
}  # fmt: skip
EXPECTED: Feeds = {
    "y": np.maximum(FEED["x"] @ WEIGHTS, 0).sum(1, keepdims=True),
    "e": TABLE[FEED["ids"]],
}

# What is replaced, by what, and in the kernel of which name.
MUTATIONS = {
    "no barrier before tiles are read": (
        "matmul", r"(?s)(__syncthreads\(\);.*?)__syncthreads\(\);", r"\1"
    ),
    "no barrier before tiles are replaced": ("matmul", r"__syncthreads\(\);", ";"),
    "rows beyond the batch": ("matmul", r" < n\)", " <= n)"),
    "a column further in shared memory": ("matmul", r"_shared_ptr\[\(", "_shared_ptr[1 + ("),
    "a shuffle too far": ("sum", r"(__shfl_down_sync\([^;]*), 4, 32\)", r"\1, 5, 32)"),
    "a shuffle left out": ("sum", r"t0_ptr\[0\] = __shfl_down_sync[^;]*, 8, 32\);", ";"),
    "the row below": ("lookup", r"\(_ptr\[0\] \* ", "((_ptr[0] + 1) * "),
    "one row too many": ("lookup", r"(\+ \(int64_t\)25\)) < ", r"\1 <= "),
    "the next element": ("lookup", r"\(arg0_ptr \+ ", "(arg0_ptr + 1 + "),
    "the next id": ("lookup", r"arg1_ptr\[", "arg1_ptr[1 + "),
}  # fmt: skip


@pytest.fixture(scope="module")
def artifact(emulation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = onnx.parser.parse_model(MODEL)
    for name, array in {"table": TABLE, "one": np.array([1])}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    path = tmp_path_factory.mktemp("mutations") / "model.gopt"
    with gpu_emulator.compiled_for_emulation(emulation, races=True, machine=True):
        graphopt.compile(model, "cuda", output=path, passes="O0", verify=False)
    return path


def test_right_code_passes(artifact: Path, emulation: Path) -> None:
    assert_close(gpu_emulator.run(artifact, [FEED], emulation, THOROUGH), [EXPECTED])


@pytest.mark.parametrize("name", MUTATIONS)
def test_broken_code_is_caught(name: str, artifact: Path, emulation: Path) -> None:
    with (
        mutant(artifact, emulation, Mutation(*MUTATIONS[name]).applied),
        pytest.raises((gpu_emulator.LaunchError, AssertionError)),
    ):
        assert_close(gpu_emulator.run(artifact, [FEED], emulation, THOROUGH), [EXPECTED])
