"""Ensembles of decision trees: their type, and their nodes as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphopt.errors import UnsupportedOpError
from graphopt.ir.graph import Node
from graphopt.ir.infer import failure, tensor_input, tensor_type, type_rule
from graphopt.ir.types import Type

_LEAF = "LEAF"


@type_rule("TreeEnsembleRegressor", domain="ai.onnx.ml")
def _tree_ensemble(node: Node) -> list[Type | None]:
    x, targets = tensor_input(node, 0), node.attr("n_targets", 1)
    if not isinstance(targets, int) or targets < 1:
        raise failure(node, "n_targets must be above 0")
    if x.shape is None or len(x.shape) != 2:
        return [tensor_type("float32", None if x.shape is None else [None, targets])]
    return [tensor_type("float32", [x.shape[0], targets])]


@dataclass(frozen=True)
class Forest:
    """Trees as arrays over all their nodes.

    At a node the walk goes to `children[node, 0]` where `x[feature[node]]` is at most
    `threshold[node]`, or is that number if `equal[node]`, and where it is NaN and
    `nan_is_less[node]`; else to `children[node, 1]`. A leaf leads to itself, so that `depths` steps
    from `roots` end at the leaf of every sample. Several nodes may have one child in common, as
    tests for the members of a set do.

    Attributes:
        depths: of each tree, falling.
        weights: float32[nodes, targets], zeros but at leaves.
        base: float32[targets], what is added to the sums.
    """

    feature: np.ndarray
    threshold: np.ndarray
    equal: np.ndarray
    children: np.ndarray
    nan_is_less: np.ndarray
    roots: np.ndarray
    depths: np.ndarray
    weights: np.ndarray
    base: np.ndarray

    @property
    def is_leaf(self) -> np.ndarray:
        return self.children[:, 0] == np.arange(len(self.feature))

    def of_limits(self) -> Forest:
        """The same trees without nodes that ask for one number: each becomes two with a limit.

        What is at most the number is equal to it unless it is at most the next smaller one.
        """
        nodes = np.flatnonzero(self.equal)
        if not len(nodes):
            return self
        children, below = self.children.copy(), len(self.feature) + np.arange(len(nodes))
        children[nodes, 0] = below
        # A NaN that comes to the second node is equal.
        children = np.concatenate([children, self.children[nodes, ::-1]])
        lower = np.nextafter(self.threshold[nodes], np.float32(-np.inf))
        count, targets = len(nodes), self.weights.shape[1]
        depths = depths_of(children)[self.roots]
        order = np.argsort(-depths, kind="stable")
        return replace(
            self,
            feature=np.concatenate([self.feature, self.feature[nodes]]),
            threshold=np.concatenate([self.threshold, lower]),
            equal=np.zeros(len(children), bool),
            children=children,
            nan_is_less=np.concatenate([self.nan_is_less, np.zeros(count, bool)]),
            roots=self.roots[order],
            depths=depths[order],
            weights=np.concatenate([self.weights, np.zeros((count, targets), np.float32)]),
        )


def depths_of(children: np.ndarray) -> np.ndarray:
    """How many steps the farthest leaf below each node is away.

    Raises:
        ValueError: a walk never ends.
    """
    depths, here = np.zeros(len(children), np.int32), np.arange(len(children))
    for _step in range(len(children) + 1):
        below = 1 + depths[children].max(axis=1)
        deeper = np.where(children[:, 0] == here, 0, below).astype(np.int32)
        if (deeper == depths).all():
            return depths
        depths = deeper
    raise ValueError("a tree that never ends")


def forest_of(node: Node) -> Forest:
    """The trees of a TreeEnsembleRegressor, which adds up the leaves of all of them.

    Raises:
        InvalidModelError: its attributes are not those of trees.
        UnsupportedOpError: it compares or adds up otherwise.
    """
    attrs = node.attrs
    kind, after = attrs.get("aggregate_function", "SUM"), attrs.get("post_transform", "NONE")
    if kind not in ("SUM", "AVERAGE") or after != "NONE" or any("tensor" in key for key in attrs):
        reason = f"leaves taken by {kind}, {after} of them, or thresholds in double precision"
        raise UnsupportedOpError(node.op, reason, node.where)
    try:
        forest = _Builder(node, attrs).forest()
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, MemoryError):
        raise failure(node, "its attributes are not those of trees") from None
    if kind == "AVERAGE":
        forest.weights[:] /= np.float32(len(forest.roots))
    return forest


class _Builder:
    def __init__(self, node: Node, attrs: Mapping[str, Any]) -> None:
        self.node = node
        trees, ids = (np.asarray(attrs[f"nodes_{k}"], np.int64) for k in ("treeids", "nodeids"))
        self.number = {key: k for k, key in enumerate(zip(trees.tolist(), ids.tolist()))}
        self.trees = trees
        self.attrs = attrs
        if len(self.number) < len(trees):
            raise ValueError("a node twice")
        modes = attrs["nodes_modes"]
        self.modes = [m.decode() if isinstance(m, bytes) else m for m in modes]
        self.feature = np.asarray(attrs["nodes_featureids"], np.int64).astype(np.int32)
        self.threshold = np.asarray(attrs["nodes_values"], np.float32).copy()
        sides = ("nodes_truenodeids", "nodes_falsenodeids")
        self.children = np.array([self._children(side) for side in sides], np.int32).T.copy()
        missing = attrs.get("nodes_missing_value_tracks_true") or [0] * len(trees)
        self.nan = np.asarray(missing, np.int64).astype(bool)
        lists = (self.modes, self.feature, self.threshold, self.children, self.nan)
        if not len(trees) or any(len(part) != len(trees) for part in lists):
            raise ValueError("lists of different lengths")

    def _children(self, side: str) -> list[int]:
        """The numbers of the nodes on one side; a leaf is its own child."""
        found = []
        for k, child in enumerate(self.attrs[side]):
            tree = int(self.trees[k])
            found.append(k if self.modes[k] == _LEAF else self.number[tree, int(child)])
        return found

    def forest(self) -> Forest:
        roots = self._roots()
        equal = self._as_less_or_equal()
        depths = depths_of(self.children)
        leaf = self.children[:, 0] == np.arange(len(self.feature))
        self.feature[leaf], self.threshold[leaf] = 0, 0
        if (self.feature < 0).any():
            raise ValueError("a feature below 0")
        roots = roots[np.argsort(-depths[roots], kind="stable")]
        return Forest(
            self.feature,
            self.threshold,
            equal,
            self.children,
            self.nan,
            roots.astype(np.int32),
            depths[roots],
            *self._leaves(),
        )

    def _roots(self) -> np.ndarray:
        """The nodes that are below no other: one of each tree."""
        inner = np.array([mode != _LEAF for mode in self.modes])
        own = (self.children == np.arange(len(self.trees))[:, None]).any(axis=1)
        roots = np.setdiff1d(np.arange(len(self.trees)), self.children[inner].reshape(-1))
        trees = self.trees[roots]
        if not np.array_equal(np.sort(trees), np.unique(self.trees)) or (own & inner).any():
            raise ValueError("not one root a tree")
        return roots

    def _as_less_or_equal(self) -> np.ndarray:
        """All comparisons as `<=` or `==`: with the next smaller number, with branches exchanged.

        Returns which nodes ask for one number.
        """
        equal = np.zeros(len(self.modes), bool)
        for k, mode in enumerate(self.modes):
            if mode in (_LEAF, "BRANCH_LEQ"):
                continue
            if mode in ("BRANCH_GT", "BRANCH_GTE", "BRANCH_NEQ"):
                self.children[k] = self.children[k][::-1]
                # A NaN is not above anything, but it differs from everything.
                self.nan[k] = mode != "BRANCH_NEQ" and not self.nan[k]
            if mode in ("BRANCH_LT", "BRANCH_GTE"):
                self.threshold[k] = np.nextafter(self.threshold[k], np.float32(-np.inf))
            elif mode in ("BRANCH_EQ", "BRANCH_NEQ"):
                equal[k] = True
            elif mode != "BRANCH_GT":
                reason = f"a node of mode {mode!r} is not compiled"
                raise UnsupportedOpError(self.node.op, reason, self.node.where)
        return equal

    def _leaves(self) -> tuple[np.ndarray, np.ndarray]:
        attrs, targets = self.attrs, self.node.attr("n_targets", 1)
        weights = np.zeros((len(self.feature), targets), np.float32)
        keys = zip(attrs["target_treeids"], attrs["target_nodeids"], strict=True)
        places = np.array([self.number[int(tree), int(node)] for tree, node in keys], np.int64)
        columns = np.asarray(attrs["target_ids"], np.int64)
        if (columns < 0).any() or any(self.modes[place] != _LEAF for place in places):
            raise ValueError("a target below 0, or at a branch")
        np.add.at(weights, (places, columns), np.asarray(attrs["target_weights"], np.float32))
        base = np.asarray(attrs.get("base_values") or np.zeros(targets), np.float32)
        if base.shape != (targets,):
            raise ValueError("base values of other targets")
        return weights, base
