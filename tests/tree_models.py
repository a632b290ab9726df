"""Models of one ensemble of trees, and rows for them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

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
