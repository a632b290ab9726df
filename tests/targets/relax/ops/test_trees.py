"""Compiled ensembles of trees against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from tree_models import MODES, Attrs, model, random_trees, rows

from graphopt.errors import InvalidModelError, UnsupportedOpError
from graphopt.ir import onnx_io
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
