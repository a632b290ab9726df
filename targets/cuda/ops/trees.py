"""Ensembles of decision trees, their nodes packed for the kernel."""

from __future__ import annotations

import numpy as np
from tvm import relax

from graphopt.ir.graph import Node
from graphopt.ir.trees import Forest
from graphopt.targets.cuda.kernels import trees
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.relax.loops import loops
from graphopt.targets.relax.ops.trees import operands


@lowers("TreeEnsembleRegressor", domain="ai.onnx.ml")
def _tree_ensemble(lower: CudaLowering, node: Node) -> relax.Expr:
    x, forest = operands(lower, node)
    arguments = [lower.expr(x), *map(lower.constant, packed(forest)), lower.constant(forest.base)]
    shape = [lower.shape(x)[0], len(forest.base)]
    return loops(lower, trees.ensemble, arguments, [(shape, "float32")])[0]


def packed(forest: Forest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nodes, roots and leaves that `trees.ensemble` reads."""
    forest = forest.of_limits()
    count, is_leaf = len(forest.feature), forest.is_leaf
    order = _by_level(forest, is_leaf)
    number = np.empty(count, np.int32)
    number[is_leaf] = -1 - np.arange(is_leaf.sum())
    number[order] = np.arange(len(order))
    sign = np.where(forest.nan_is_less, np.int32(-(2**31)), np.int32(0))
    columns = forest.feature | sign, forest.threshold.view(np.int32), *number[forest.children].T
    nodes = np.stack(columns, axis=1).astype(np.int32)[order]
    if not len(nodes):
        nodes = np.zeros((1, 4), np.int32)  # no tree has a branch: nothing reads it
    return nodes, number[forest.roots], forest.weights[is_leaf]


def _by_level(forest: Forest, is_leaf: np.ndarray) -> np.ndarray:
    """The branches: those of the first level of each tree in turn, those of the second, …"""
    levels, level, done = [], forest.roots, is_leaf.copy()
    while len(level := level[~done[level]]):
        level = level[np.sort(np.unique(level, return_index=True)[1])]  # some have two parents
        levels.append(level)
        done[level] = True
        level = forest.children[level].reshape(-1)
    return np.concatenate(levels) if levels else np.zeros(0, np.int32)
