"""Ensembles of trees as sets of leaves, where trees are not too deep.

Each leaf of a tree is a bit. A comparison that fails rules out the leaves on its left side, all
those that it fails for at once; of what is left the first is where a walk would end. So rows are
compared in vectors, with limits that lie one after the other, and nothing waits for a load. Equal
comparisons of a tree are one: a symmetric tree of CatBoost has as many as levels. (Lucchese et
al., QuickScorer, SIGIR 2015.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from tvm import relax

from graphopt.ir.graph import Node
from graphopt.ir.trees import Forest
from graphopt.targets.cpu.kernels.leaf_sets import LEAVES, leaf_sets
from graphopt.targets.cpu.kernels.tree_walks import walks_alone
from graphopt.targets.cpu.tree_nodes import Walks, walks
from graphopt.targets.relax.lowering import Lowering, lowers
from graphopt.targets.relax.ops.trees import operands

_MOST_LEAVES = 1 << 12  # of a tree, which is walked if it has more
_ALL = (1 << LEAVES) - 1

Test = tuple[int, bool, tuple[float, ...] | float]
"""A column, whether NaN counts as less, and the members of a set, or a limit."""


@lowers("TreeEnsembleRegressor", domain="ai.onnx.ml", target="cpu")
def _tree_ensemble(lower: Lowering, node: Node) -> relax.Expr:
    x, forest = operands(lower, node)
    walked, lanes = walks(forest), node.attrs["lanes"]
    compared = _compared(forest, walked)
    few = lanes if compared is None else _few(compared[1], walked)
    args = [lower.constant(walked.nodes), lower.constant(walked.weights)]
    args += [lower.constant(walked.roots), lower.expr(x), lower.constant(forest.base)]
    args += [lower.constant(walked.columns), lower.constant(walked.target)]
    if compared is None or few >= lanes:
        kernel = walks_alone(walked.kind)
    else:
        kinds, arrays = compared
        kernel = leaf_sets(walked.kind, kinds, lanes, few)
        args += map(lower.constant, arrays)
    shape = [lower.shape(x)[0], len(forest.base)]
    (result,) = lower.kernel(kernel, args, [(shape, "float32")])
    return result


def _few(arrays: list[np.ndarray], walked: Walks) -> int:
    """How many rows are walked in less time than one vector of rows is compared.

    Cycles of a Zen 4: 2.3 a limit or member, 10 a set, 45 a step of all trees of a group, which
    some rows end before.
    """
    starts, _, limits, *_, terms, _ = arrays
    compared = 2.3 * (len(limits) + len(terms)) + 10 * len(starts)
    return int(compared / (45 * max(1, walked.steps)))


@dataclass
class _Tree:
    """The leaves of a tree from left to right, and which of them each test leaves if it fails."""

    leaves: list[int] = field(default_factory=list)
    left: dict[Test, int] = field(default_factory=dict)  # bit p of the number: leaf p

    def words(self) -> Iterator[tuple[int, dict[Test, int]]]:
        """The sets from the last one on: its first leaf, and the masks of tests that change it."""
        for first in reversed(range(0, len(self.leaves), LEAVES)):
            parts = {test: left >> first & _ALL for test, left in self.left.items()}
            inside = (1 << min(LEAVES, len(self.leaves) - first)) - 1
            yield first, {t: part for t, part in parts.items() if part & inside != inside}


def _trees_of(forest: Forest) -> list[_Tree] | None:
    """All trees; None if one has too many leaves, or two nodes that lead to one that is no set."""
    trees = []
    for root in forest.roots.tolist():
        tree = _tree_of(forest, root)
        if tree is None:
            return None
        trees.append(tree)
    return trees


def _tree_of(forest: Forest, root: int) -> _Tree | None:
    tree, seen, is_leaf = _Tree(), set[int](), forest.is_leaf
    waiting: list[tuple[int, Test | None, int]] = [(root, None, 0)]
    while waiting:
        node, failed, first = waiting.pop()
        if node in seen or len(tree.leaves) == _MOST_LEAVES:
            return None
        seen.add(node)
        if failed is not None:  # its left side is what has been numbered since
            gone = (1 << len(tree.leaves)) - (1 << first)
            tree.left[failed] = tree.left.get(failed, -1) & ~gone
        if is_leaf[node]:
            tree.leaves.append(node)
            continue
        test, other = _test_at(forest, node)
        if test[1] and not _is_limit(test):
            return None
        waiting.append((other, test, len(tree.leaves)))
        waiting.append((int(forest.children[node, 0]), None, 0))
    return tree


def _is_limit(test: Test) -> bool:
    """True if the test is `<=` a number; NaN is none."""
    return isinstance(test[2], float) and test[2] == test[2]


def _test_at(forest: Forest, node: int) -> tuple[Test, int]:
    """The test at a node, and the child for rows that fail it.

    Nodes that ask for one number each and lead to the same child ask for the members of a set.
    """
    column, nan = int(forest.feature[node]), bool(forest.nan_is_less[node])
    member, other = map(int, forest.children[node])
    if not forest.equal[node]:
        return (column, nan, float(forest.threshold[node])), other
    values = [float(forest.threshold[node])]
    while forest.equal[other] and int(forest.children[other, 0]) == member:
        if int(forest.feature[other]) != column or bool(forest.nan_is_less[other]) != nan:
            break
        values.append(float(forest.threshold[other]))
        other = int(forest.children[other, 1])
    return (column, nan, tuple(sorted(set(values)))), other


def _compared(forest: Forest, walked: Walks) -> tuple[tuple[bool, bool], list[np.ndarray]] | None:
    """What `leaf_sets` is made for and reads beside `walked`, rows and `base`.

    None if a tree has too many leaves, or two nodes that lead to one that is no set.
    """
    trees, columns = _trees_of(forest), walked.columns
    if trees is None:
        return None
    place = {int(column): k for k, column in enumerate(columns)}
    starts, limit_starts, test_starts, term_starts = [0], [0], [0], [0]
    limits: list[tuple[int, float, int]] = []
    terms: list[tuple[int, float]] = []
    masks: list[int] = []
    firsts: list[tuple[int, int]] = []
    for k, tree in enumerate(trees):
        for first, parts in tree.words():
            for (column, nan, values), part in parts.items():
                at = place[column] + len(columns) * nan
                if isinstance(values, float):
                    limits.append((at, values, part))
                    continue
                terms += ((at, value) for value in values)
                term_starts.append(len(terms))
                masks.append(part)
            limit_starts.append(len(limits))
            test_starts.append(len(masks))
            firsts.append((k, first))
        starts.append(len(firsts))
    limit_columns, limit_values, limit_masks = zip(*limits) if limits else ((), (), ())
    term_columns, term_values = zip(*terms) if terms else ((), ())
    arrays = [
        starts,
        limit_starts,
        limit_columns,
        np.array(limit_values, np.float32),
        _turned(limit_masks),
        test_starts,
        term_starts,
        _turned(masks),
        term_columns,
        np.array(term_values, np.float32),
        _leaves(forest, trees, firsts, walked),
    ]
    numbers = [a if isinstance(a, np.ndarray) else np.array(a, np.int32) for a in arrays]
    return (len(firsts) > len(trees), bool(masks)), numbers


def _turned(masks: Sequence[int]) -> np.ndarray:
    """Leaf p at bit 31 - p, so that zeros before the first bit that is set count leaves."""
    turned = [int(f"{mask:0{LEAVES}b}"[::-1], 2) for mask in masks]
    return np.array(turned, np.uint32).view(np.int32)


def _leaves(
    forest: Forest, trees: list[_Tree], firsts: list[tuple[int, int]], walked: Walks
) -> np.ndarray:
    """What leaves add: [sets, targets or 1, 32]."""
    own = len(forest.base) if walked.kind.all_targets else 1
    leaves = np.zeros((len(firsts), own, LEAVES), np.float32)
    for n, (k, first) in enumerate(firsts):
        to = walked.target[k]
        some = forest.weights[trees[k].leaves[first : first + LEAVES]]
        leaves[n, :, : len(some)] = some[:, to : to + own].T
    return leaves
