"""Models of one ensemble of trees, and rows for them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

MODES = ["LEQ", "LT", "GTE", "GT", "EQ", "NEQ"]
Attrs = dict[str, list]


def random_trees(
    count: int, targets: int, modes: list[str], missing: bool, seed: int = 0, levels: int = 6
) -> Attrs:
    """Trees of up to some levels over 5 features, whose thresholds the data often hits."""
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
        grow(tree, 0, int(rng.integers(0, levels + 1)))
    if missing:
        size = len(nodes["nodes_modes"])
        nodes["nodes_missing_value_tracks_true"] = rng.integers(0, 2, size).tolist()
    return {**nodes, **leaves}


def trees_of_sets(count: int) -> Attrs:
    """Trees that ask for members of sets, as LightGBM writes them: nodes with one child in common.

    x[k] in {0, 0.5, 1} ? (x[4] <= 0 ? 1 : 2) : x[3] == -1 ? 4 : 8, times 10^tree
    """
    columns = "featureids values truenodeids falsenodeids modes nodeids"
    nodes: Attrs = {f"nodes_{name}": [] for name in ("treeids", *columns.split())}
    leaves: Attrs = {f"target_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")}
    for tree in range(count):
        rows: list[tuple] = [
            (tree % 3, 0.5, 3, 1, "BRANCH_EQ", 0),
            (tree % 3, 0.0, 3, 2, "BRANCH_EQ", 1),
            (tree % 3, 1.0, 3, 4, "BRANCH_EQ", 2),
            (4, 0.0, 5, 6, "BRANCH_LEQ", 3),
            (3, -1.0, 7, 8, "BRANCH_EQ", 4),
            *((0, 0.0, 0, 0, "LEAF", leaf) for leaf in range(5, 9)),
        ]
        for row in rows:
            for name, value in zip(nodes.values(), (tree, *row)):
                name.append(value)
        for k in range(4):
            for name, value in zip(leaves.values(), (tree, 5 + k, 0, float(2**k * 10**tree))):
                name.append(value)
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
