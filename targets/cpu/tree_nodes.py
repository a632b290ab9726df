"""The nodes of trees as `tree_walks` reads them, the two children of a node side by side."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from graphopt.ir.trees import Forest
from graphopt.targets.cpu.kernels.tree_walks import GROUP, LEAST, Walked

_NOTHING = np.float32(-0.0)  # which leaves every sum as it is
_JUMP = -1
_BITS = 31  # of an int32 that is not negative


@dataclass(frozen=True)
class Walks:
    """What a kernel of walks is made for, and what it reads but for rows and `base`.

    Attributes:
        target: of each tree, where it adds to one only; zeros else.
        steps: of a row at most, in which all trees of a group take one.
    """

    kind: Walked
    nodes: np.ndarray
    weights: np.ndarray
    roots: np.ndarray
    columns: np.ndarray
    target: np.ndarray
    steps: int


@dataclass
class _Placed:
    """Nodes in the order in which they are stored.

    Attributes:
        nodes: numbers in the forest; `_JUMP` for what only leads to a node that has a place.
        places: of the first child, or where a jump leads, relative to the node, plus 1.
        roots: where each tree begins.
        leaves: of each tree.
    """

    nodes: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)
    leaves: list[list[int]] = field(default_factory=list)

    def put(self, node: int, place: int = 1) -> int:
        self.nodes.append(node)
        self.places.append(place)
        return len(self.nodes) - 1

    def tree(self, root: int, children: list[list[int]]) -> None:
        """Add the nodes of a tree, level by level."""
        at = {root: self.put(root)}
        waiting, leaves = [root], []
        for node in waiting:
            if children[node][0] == node:
                leaves.append(node)
                continue
            here = len(self.nodes)
            self.places[at[node]] = here - at[node] + 1
            for k, child in enumerate(children[node]):
                if child in at:
                    self.put(_JUMP, at[child] - (here + k) + 1)
                else:
                    at[child] = self.put(child)
                    waiting.append(child)
        self.roots.append(at[root])
        self.leaves.append(leaves)


def walks(forest: Forest) -> Walks:
    """The trees in their order; a last group is filled up with leaves that add nothing."""
    limits, placed = forest.of_limits(), _Placed()
    children = limits.children.tolist()
    for root in forest.roots.tolist():
        placed.tree(root, children)
    inner = ~limits.is_leaf
    columns = np.unique(limits.feature[inner]) if inner.any() else np.zeros(1, np.int32)
    copies = bool((limits.nan_is_less & inner).any())
    held = len(columns) * (2 if copies else 1)
    column = np.searchsorted(columns, limits.feature) + len(columns) * limits.nan_is_less
    target, all_targets, first, weights = _added(limits.weights, placed.leaves)
    first = np.where(inner, _keys(limits.threshold), first)
    # Behind all others: a jump, and a leaf that adds nothing.
    first = np.append(first, [0, len(weights) - 1 if all_targets else _NOTHING.view(np.int32)])
    column = np.append(np.where(inner, column, held), [held, held])
    nodes = np.array([len(inner) if node == _JUMP else node for node in placed.nodes])
    nodes, places = np.append(nodes, len(inner) + 1), np.append(placed.places, 1)
    shift = int(held).bit_length()
    fits = int(abs(places).max()) < 1 << max(0, _BITS - shift)
    word = "int32" if fits else "int64"
    numbers = np.stack([first[nodes], (places << shift) + column[nodes]], axis=1)
    more = -len(target) % GROUP
    return Walks(
        Walked(len(columns), copies, len(forest.base), all_targets, word, shift),
        numbers.astype(word),
        weights,
        np.append(placed.roots, [len(nodes) - 1] * more).astype(np.int32).reshape(-1, GROUP),
        columns.astype(np.int32),
        np.append(target, np.zeros(more, np.int32)),
        int(np.maximum.reduceat(limits.depths, range(0, len(target), GROUP)).sum()),
    )


def _added(
    weights: np.ndarray, leaves: list[list[int]]
) -> tuple[np.ndarray, bool, np.ndarray, np.ndarray]:
    """The target of each tree, whether trees add to all instead, the bits or the row that each
    leaf has, and the rows, the last of which adds nothing.
    """
    used = [np.flatnonzero(weights[own].any(axis=0)) for own in leaves]
    nothing = np.full((1, weights.shape[1]), _NOTHING)
    bits = np.zeros(len(weights), np.int64)
    if any(len(targets) > 1 for targets in used):
        every = np.concatenate([np.array(own) for own in leaves])
        bits[every] = np.arange(len(every))
        rows = np.concatenate([weights[every], nothing])
        return np.zeros(len(leaves), np.int32), True, bits, rows
    target = np.array([int(t[0]) if len(t) else 0 for t in used], np.int32)
    for own, to in zip(leaves, target):
        bits[own] = weights[own, to].view(np.int32)
    return target, False, bits, nothing


def _keys(limits: np.ndarray) -> np.ndarray:
    """The bits of limits' keys: nothing is at most a NaN, but a NaN that is less than anything."""
    bits = (limits + np.float32(0)).view(np.int32)  # -0 as 0
    ordered = bits ^ (bits >> 31 | np.int32(-(2**31)))
    return np.where(np.isnan(limits), np.int32(LEAST), ordered).astype(np.int64)
