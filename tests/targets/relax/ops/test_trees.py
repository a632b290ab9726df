"""Compiled ensembles of trees against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from graphopt.errors import InvalidModelError, UnsupportedOpError
from graphopt.ir import onnx_io
from graphopt.testing import Compiled, run_onnxruntime

MODES = ["LEQ", "LT", "GTE", "GT", "EQ", "NEQ"]
Attrs = dict[str, list]


def random_trees(count: int, targets: int, modes: list[str], missing: bool, seed: int = 0) -> Attrs:
    """Trees of up to 6 levels over 5 features, whose thresholds the data often hits."""
    rng = np.random.default_rng(seed)
    names = ("featureids", "values", "truenodeids", "falsenodeids", "modes", "treeids", "nodeids")
    nodes: Attrs = {f"nodes_{name}": [] for name in names}
    leaves: Attrs = {f"target_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")}

    def grow(tree: int, number: int, depth: int) -> int:
        """Append the nodes below `number`; returns the first number that is free."""
        place = len(nodes["nodes_modes"])
        leaf = depth == 0 or rng.random() < 0.2
        mode = "LEAF" if leaf else f"BRANCH_{rng.choice(modes)}"
        row = (rng.integers(5), rng.integers(-2, 3) / 2, 0, 0, mode, tree, number)
        for name, value in zip(names, row):
            nodes[f"nodes_{name}"].append(value)
        free = number + 1
        if leaf:
            for target in range(targets):
                entry = (tree, number, target, rng.normal())
                for values, value in zip(leaves.values(), entry):
                    values.append(value)
            return free
        nodes["nodes_truenodeids"][place], free = free, grow(tree, free, depth - 1)
        nodes["nodes_falsenodeids"][place], free = free, grow(tree, free, depth - 1)
        return free

    for tree in range(count):
        grow(tree, 0, int(rng.integers(0, 7)))
    if missing:
        size = len(nodes["nodes_modes"])
        nodes["nodes_missing_value_tracks_true"] = rng.integers(0, 2, size).tolist()
    return {**nodes, **leaves}


def model(targets: int, attrs: Attrs, columns: int | str = 5, **more: object) -> onnx.ModelProto:
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=targets,
        **attrs,
        **more,
    )
    kinds = [("x", ["N", columns]), ("y", ["N", targets])]
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in kinds)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(
        helper.make_graph([node], "g", [x], [y]), opset_imports=imports, ir_version=8
    )


def rows(count: int, missing: bool) -> np.ndarray:
    rng = np.random.default_rng(count)
    x = (rng.integers(-3, 4, (count, 5)) / 2).astype(np.float32)
    if missing:
        x[rng.random(x.shape) < 0.3] = np.nan
    return x


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(
    ("count", "targets", "modes"),
    [(1, 1, MODES[:1]), (19, 1, MODES[:1]), (8, 3, MODES), (20, 2, MODES)],
)
def test_trees(count: int, targets: int, modes: list[str], missing: bool) -> None:
    """Weights are added up in another order."""
    for seed in range(3):
        mixed = modes if len(modes) == 1 else [modes[seed], modes[seed + 3]]
        trees = random_trees(count, targets, mixed, missing, seed)
        more = {"base_values": [0.5] * targets} if seed else {}
        kind = "AVERAGE" if seed == 2 else "SUM"
        graph = onnx_io.from_proto(model(targets, trees, aggregate_function=kind, **more))
        compiled = Compiled(graph)
        for size in (1, 3, 70):
            feeds = {"x": rows(size, missing)}
            expected = run_onnxruntime(graph, feeds)["y"]
            np.testing.assert_allclose(compiled(feeds)["y"], expected, rtol=1e-5, atol=1e-6)


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
