"""Ensembles of trees on a GPU: next to ONNX Runtime, the same whatever the batch, and broken."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import gpu_emulator
import numpy as np
import pytest
from tree_models import MODES, Attrs, model, random_trees, rows

import graphopt
from graphopt.errors import UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.targets.cuda.kernels.trees import sharing
from graphopt.testing import run_onnxruntime

from .conftest import THOROUGH, Feeds, Runner, assert_close
from .mutants import Mutation, mutant


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(
    ("count", "targets", "modes"),
    [(1, 1, MODES[:1]), (19, 1, MODES), (20, 3, MODES[:1]), (140, 2, MODES), (9, 11, MODES[:1])],
)
def test_trees(
    count: int, targets: int, modes: list[str], missing: bool, run_model: Runner
) -> None:
    """Weights are added up in another order."""
    trees = random_trees(count, targets, modes, missing, seed=count)
    kind = "AVERAGE" if targets == 2 else "SUM"
    proto = model(targets, trees, aggregate_function=kind, base_values=[0.5] * targets)
    graph = onnx_io.from_proto(proto)
    feeds = [{"x": rows(size, missing)} for size in (1, 7, 64)]
    expected = [run_onnxruntime(graph, feed) for feed in feeds]
    assert_close(run_model(graph, *feeds), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("count", [40, 600])
def test_answers_do_not_depend_on_the_batch_or_on_which_thread_is_first(
    count: int, run_model: Runner
) -> None:
    proto, x = model(1, random_trees(count, 1, ["LEQ"], False)), rows(9, False)
    feeds = [{"x": x}, {"x": x[4:5]}]
    modes = [gpu_emulator.Mode(order=order) for order in (0, 1, 5)]
    first, *others = [[y["y"] for y in run_model(proto, *feeds, mode=mode)] for mode in modes]
    np.testing.assert_array_equal(first[1], first[0][4:5])
    for found in others:
        np.testing.assert_array_equal(np.concatenate(found), np.concatenate(first))


def test_trees_without_branches(run_model: Runner) -> None:
    leaf: Attrs = {f"nodes_{name}": [0] for name in ("featureids", "truenodeids", "falsenodeids")}
    leaf |= {"nodes_values": [0.0], "nodes_modes": ["LEAF"], "nodes_treeids": [0]}
    leaf |= {"nodes_nodeids": [0], "target_treeids": [0], "target_nodeids": [0]}
    leaf |= {"target_ids": [0], "target_weights": [1.5]}
    (found,) = run_model(model(1, leaf), {"x": rows(3, False)})
    np.testing.assert_array_equal(found["y"], np.full((3, 1), 1.5, np.float32))


def test_threads_that_share_a_row() -> None:
    assert [sharing(n) for n in (1, 3, 4, 19, 64, 140, 511, 512, 9999)] == [
        1, 1, 2, 8, 32, 64, 128, 256, 256
    ]  # fmt: skip


def test_refused(run_model: Runner) -> None:
    proto = model(1, random_trees(3, 1, ["LEQ"], False), columns="F")
    with pytest.raises(UnsupportedOpError, match="all features"):
        run_model(proto, {"x": rows(1, False)})


BARRIER = r"__syncthreads\(\);"
MUTATIONS = {
    "NaN is never less": (140, r"\(_ptr_2\[0\] < 0\)", "0"),
    "less is not less or equal": (19, r"<= \(\*\(float", "< (*(float"),
    "the other branch": (19, r"condval = _ptr_\d\[2\]", "condval = _ptr_2[3]"),
    "features of another row": (19, r"\* \(int64_t\)5\)", "* (int64_t)6)"),
    "a tree too few": (140, r"< \(int64_t\)35", "< (int64_t)34"),
    "trees that there are not": (140, r"< \(int64_t\)35", "< (int64_t)36"),
    "rows that there are not": (140, r"\) < N\) \{", ") <= N) {"),
    "part of a sum": (19, r"_ptr\[0\] = [^;]*__shfl_xor_sync[^;]*, 4, 32\)\);", ";"),
    "a sum that is not there yet": (140, rf"(?s)({BARRIER}.*?){BARRIER}", r"\1"),
    "a sum that is not read yet": (140, rf"(?s)({BARRIER}.*?{BARRIER}.*?){BARRIER}", r"\1"),
    "the sum of half of the warps": (140, r"\+ _ptr_3\[[^;]*;", ");"),
}


@cache
def _artifact(count: int, emulation: Path) -> tuple[Path, Feeds, Feeds]:
    """Trees of two targets, compiled once; rows, and what should be said to them."""
    graph = onnx_io.from_proto(model(2, random_trees(count, 2, ["LEQ"], True)))
    path, feed = emulation / f"trees{count}.gopt", {"x": rows(9, True)}
    with gpu_emulator.compiled_for_emulation(emulation, races=True, machine=True):
        graphopt.compile(graph, "cuda", output=path, passes="O0", verify=False)
    return path, feed, run_onnxruntime(graph, feed)


def check(count: int, emulation: Path) -> None:
    path, feed, expected = _artifact(count, emulation)
    assert_close(gpu_emulator.run(path, [feed], emulation, THOROUGH), [expected])


@pytest.mark.parametrize("count", [19, 140])
def test_right_code_passes(count: int, emulation: Path) -> None:
    check(count, emulation)


@pytest.mark.parametrize("name", MUTATIONS)
def test_broken_code_is_caught(name: str, emulation: Path) -> None:
    count, pattern, replacement = MUTATIONS[name]
    path, *_ = _artifact(count, emulation)
    with (
        mutant(path, emulation, Mutation("tree", pattern, replacement).applied),
        pytest.raises((gpu_emulator.LaunchError, AssertionError)),
    ):
        check(count, emulation)
