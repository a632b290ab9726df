"""Compiled ensembles of trees against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tree_models import MODES, Attrs, model, random_trees, rows, trees_of_sets

import graphopt
from graphopt.errors import InvalidModelError, UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.ir.trees import forest_of
from graphopt.targets.cpu import tree_nodes, trees
from graphopt.targets.cpu.target import CpuTarget
from graphopt.testing import Compiled, run_onnxruntime


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(
    ("count", "targets", "modes"),
    [(1, 1, MODES[:1]), (19, 1, MODES[:1]), (8, 3, MODES), (20, 2, MODES)],
)
def test_trees(count: int, targets: int, modes: list[str], missing: bool) -> None:
    """Weights are added up in another order."""
    for seed in range(3):
        mixed = modes if len(modes) == 1 else [modes[seed], modes[seed + 3]]
        attrs = random_trees(count, targets, mixed, missing, seed)
        more = {"base_values": [0.5] * targets} if seed else {}
        kind = "AVERAGE" if seed == 2 else "SUM"
        graph = onnx_io.from_proto(model(targets, attrs, aggregate_function=kind, **more))
        compiled = Compiled(graph)
        for size in (1, 3, 70):
            feeds = {"x": rows(size, missing)}
            expected = run_onnxruntime(graph, feeds)["y"]
            np.testing.assert_allclose(compiled(feeds)["y"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("modes", [MODES[:1], MODES[4:]])
def test_more_leaves_than_a_set_holds(modes: list[str], missing: bool) -> None:
    graph = onnx_io.from_proto(model(1, random_trees(9, 1, modes, missing, 1, levels=9)))
    compiled = Compiled(graph)
    feeds = {"x": rows(150, missing)}
    expected = run_onnxruntime(graph, feeds)["y"]
    found = compiled(feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    for size in (1, 3, 65):  # few rows are walked, others compared: the same bits
        part = compiled({"x": feeds["x"][:size]})["y"]
        assert part.tobytes() == found[:size].tobytes()


def test_trees_of_too_many_leaves_are_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = onnx_io.from_proto(model(2, random_trees(11, 2, MODES, True)))
    feeds = {"x": rows(20, True)}
    compared = Compiled(graph)(feeds)["y"]
    monkeypatch.setattr(trees, "_MOST_LEAVES", 0)
    assert Compiled(graph)(feeds)["y"].tobytes() == compared.tobytes()


@pytest.mark.parametrize("word", ["int32", "int64"])
def test_walks_to_shared_nodes(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """Of two nodes that lead to a third, one leads to a node that leads there."""
    monkeypatch.setattr(trees, "_MOST_LEAVES", 0)
    if word == "int64":
        monkeypatch.setattr(tree_nodes, "_BITS", 3)
    graph = onnx_io.from_proto(model(1, trees_of_sets(3)))
    (node,) = graph.nodes
    walked = tree_nodes.walks(forest_of(node))
    assert walked.kind.word == word and len(walked.nodes) > len(forest_of(node).feature)
    feeds = {"x": rows(60, True)}
    expected = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_array_equal(Compiled(graph)(feeds)["y"], expected)


def test_limits_at_the_ends_of_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their order as integers is that of floats, and nothing is at most a NaN."""
    ends = np.array([-np.inf, -1e-45, -0.0, 0.0, 1e-45, np.inf, np.nan], np.float32)
    monkeypatch.setattr(trees, "_MOST_LEAVES", 0)
    attrs = random_trees(16, 1, MODES[:1], True, 2)
    attrs["nodes_values"] = np.resize(ends, len(attrs["nodes_values"])).tolist()
    x = np.random.default_rng(0).choice(ends, (80, 5))
    for missing in (True, False):
        if not missing:
            del attrs["nodes_missing_value_tracks_true"]
        graph = onnx_io.from_proto(model(1, attrs))
        expected = run_onnxruntime(graph, {"x": x})["y"]
        found = Compiled(graph)({"x": x})["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_members_of_sets() -> None:
    graph = onnx_io.from_proto(model(1, trees_of_sets(3)))
    feeds = {"x": rows(60, False)}
    feeds["x"][::7, 0], feeds["x"][3, 1] = np.nan, np.inf
    expected = run_onnxruntime(graph, feeds)["y"]
    np.testing.assert_array_equal(Compiled(graph)(feeds)["y"], expected)
    (node,) = graph.nodes
    compared = trees._trees_of(forest_of(node))
    assert compared is not None
    assert all(len(tree.leaves) == 4 and len(tree.left) == 3 for tree in compared)


def test_equal_comparisons_are_one() -> None:
    symmetric = random_trees(1, 1, ["LEQ"], False, 3)
    symmetric["nodes_featureids"] = [0] * len(symmetric["nodes_modes"])
    symmetric["nodes_values"] = [0.5] * len(symmetric["nodes_modes"])
    (node,) = onnx_io.from_proto(model(1, symmetric)).nodes
    compared = trees._trees_of(forest_of(node))
    assert compared is not None and [len(tree.left) for tree in compared] == [1]


@pytest.mark.parametrize("name", ["x86-64-v2", "x86-64-v3"])
def test_other_cpus(tmp_path: Path, name: str) -> None:
    if not CpuTarget.parse(name).runs_here:
        pytest.skip(f"this machine is no {name}")
    proto = model(2, random_trees(9, 2, MODES, True, 5, levels=7))
    onnx.save(proto, tmp_path / "trees.onnx")
    artifact = graphopt.compile(
        tmp_path / "trees.onnx", f"cpu:{name}", output=tmp_path / "trees.gopt", verify=False
    )
    feeds = {"x": rows(61, True)}
    expected = run_onnxruntime(onnx_io.from_proto(proto), feeds)["y"]
    np.testing.assert_allclose(artifact.run(feeds)["y"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"aggregate_function": "MIN"}, UnsupportedOpError, "MIN"),
        ({"post_transform": "PROBIT"}, UnsupportedOpError, "PROBIT"),
        ({"nodes_modes": ["BRANCH_LEQ", "LEAF"]}, InvalidModelError, "those of trees"),
        ({"nodes_truenodeids": [0, 0, 0]}, InvalidModelError, "those of trees"),
        ({"nodes_truenodeids": [9, 0, 0]}, InvalidModelError, "those of trees"),
        ({"nodes_truenodeids": [2, 0, 0]}, InvalidModelError, "those of trees"),
        ({"nodes_featureids": [-1, 0, 0]}, InvalidModelError, "those of trees"),
        ({"nodes_featureids": [7, 0, 0]}, UnsupportedOpError, "all features"),
        ({"target_ids": [1, 0]}, InvalidModelError, "those of trees"),
        ({"target_nodeids": [0, 2]}, InvalidModelError, "those of trees"),
        ({"base_values": [0.5, 0.5]}, InvalidModelError, "those of trees"),
        ({"targets": 1 << 40}, InvalidModelError, "those of trees"),
        ({"nodes_modes": ["BRANCH_MEMBER", "LEAF", "LEAF"]}, UnsupportedOpError, "BRANCH_MEMBER"),
    ],
)
def test_refused(change: Attrs, error: type[Exception], says: str) -> None:
    attrs: Attrs = {
        "nodes_treeids": [0, 0, 0],
        "nodes_nodeids": [0, 1, 2],
        "nodes_featureids": [1, 0, 0],
        "nodes_values": [0.5, 0.0, 0.0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_truenodeids": [1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0],
        "target_treeids": [0, 0],
        "target_nodeids": [1, 2],
        "target_ids": [0, 0],
        "target_weights": [1.0, 2.0],
    } | change
    with pytest.raises(error, match=says):
        Compiled(onnx_io.from_proto(model(attrs.pop("targets", 1), attrs)))


def test_features_whose_number_is_not_known() -> None:
    graph = onnx_io.from_proto(model(1, random_trees(3, 1, ["LEQ"], False), columns="F"))
    with pytest.raises(UnsupportedOpError, match="all features"):
        Compiled(graph)
