"""Ensembles of decision trees, walked without branches.

One comparison depends on the one before it, so several trees are walked at a time: their loads
overlap. All of a group take as many steps as the deepest; trees of like depth are together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.script.ir_builder import tirx as T

from graphopt.ir.graph import Node, Value
from graphopt.ir.trees import Forest, forest_of
from graphopt.targets.relax.loops import loops
from graphopt.targets.relax.lowering import Lowering, int64, lowers
from graphopt.targets.relax.operands import tensor_input

_GROUP = 8  # trees at a time


def operands(lower: Lowering, node: Node) -> tuple[Value, Forest]:
    """The samples, float32 [rows, features], and the trees, which compare no other features.

    Raises:
        UnsupportedOpError: the samples are not so, or the trees are not for `forest_of`.
        InvalidModelError: its attributes are not those of trees.
    """
    x, forest = tensor_input(node, 0), forest_of(node)
    if x.dtype != "float32" or x.rank != 2:
        raise lower.unsupported(f"features of {x.dtype} in {x.rank} axes; cast them to float")
    columns = x.tensor.dims[1]
    if not isinstance(columns, int) or columns <= int(forest.feature.max()):
        raise lower.unsupported("its input is not known to have all features that trees compare")
    return x, forest


@lowers("TreeEnsembleRegressor", domain="ai.onnx.ml", target="cpu")
def _tree_ensemble(lower: Lowering, node: Node) -> relax.Expr:
    x, forest = operands(lower, node)
    targets, steps = forest.weights.shape[1], _steps(forest)
    nan = bool(forest.nan_is_less.any())

    def body(rows: Any, *buffers: Any) -> None:
        *walked, weights, base, roots, depths, out = buffers
        with T.serial(int64(lower.shape(x)[0])) as n:
            with T.serial(int64(targets)) as k:
                T.buffer_store(out, base[k], [n, k])
            with T.serial(int64(steps.shape[0])) as group:
                at = T.alloc_buffer((_GROUP,), "int32", scope="local")
                with T.unroll(int64(_GROUP)) as j:
                    T.buffer_store(at, roots[group, j], [j])
                with T.serial(depths[group].astype("int64")), T.unroll(int64(_GROUP)) as j:
                    T.buffer_store(at, _next(rows, walked, n, at[j], nan), [j])
                with T.unroll(int64(_GROUP)) as j, T.serial(int64(targets)) as k:
                    leaf = weights[at[j].astype("int64"), k]
                    T.buffer_store(out, out[n, k] + leaf, [n, k])

    args = [lower.expr(x), *map(lower.constant, _arrays(forest, steps))]
    shape = [lower.shape(x)[0], targets]
    return loops(lower, body, args, [(shape, "float32")])[0]


def _next(rows: Any, walked: Any, n: Any, node: Any, nan: bool) -> Any:
    """The child of `node` that sample `n` goes to."""
    feature, threshold, children, nans = walked
    place = node.astype("int64")
    value = rows[n, feature[place].astype("int64")]
    less = value <= threshold[place]
    if nan:
        less = tirx.any(less, tirx.all(tirx.isnan(value), nans[place] != tirx.const(0, "int8")))
    return tirx.Select(less, children[place, int64(0)], children[place, int64(1)])


def _steps(forest: Forest) -> np.ndarray:
    """The depth of each group: of its first tree, as they fall."""
    return forest.depths[::_GROUP]


def _arrays(forest: Forest, steps: np.ndarray) -> list[np.ndarray]:
    """What the kernel reads; a last group is filled up with leaves that weigh nothing."""
    lacking = -len(forest.roots) % _GROUP
    count = len(forest.feature)

    def longer(array: np.ndarray, fill: Any) -> np.ndarray:
        return np.concatenate([array, np.full((1, *array.shape[1:]), fill, array.dtype)])

    roots = np.append(forest.roots, np.full(lacking, count, np.int32))
    return [
        longer(forest.feature, 0),
        longer(forest.threshold, 0),
        longer(forest.children, count),
        longer(forest.nan_is_less.astype(np.int8), 0),
        longer(forest.weights, 0),
        forest.base,
        roots.reshape(-1, _GROUP).astype(np.int32),
        steps.astype(np.int32),
    ]
