"""Trees walked row by row, without branches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.panels import Emitted
from graphopt.targets.kernels import script
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes

GROUP = 8
"""Trees at a time: one comparison depends on the one before it, so that their loads overlap."""

_STEPS = 4  # of a group before it is asked whether all of its trees have come to a leaf
_SCALAR = {"tirx.volatile": True}
"""Keeps LLVM from comparing the trees of a group in vectors, whose operands it would gather: that
takes twice as long as a load for each. It also keeps loops beside the walks from vectors."""

LEAST, MOST = 0, (1 << 32) - 1
"""Keys below and above those of all numbers."""


@dataclass(frozen=True)
class Walked:
    """What a kernel of walks is made for.

    A key is a uint32 that is less than another where its float is. A row has `columns` of them, in
    which NaN is `MOST`; if there are `copies`, as many again, in which NaN is `LEAST`; and `LEAST`.
    A node is two numbers, nodes[n]: the key of its limit, and `place * 2**shift + column`. A row
    whose key in that column is at most the limit goes to node n + place - 1, others to n + place.
    A leaf has the last column and place 1, and so leads to itself; instead of a limit it has the
    bits of what it adds to the target of its tree or, if trees add to all, its row of `weights`.

    Attributes:
        columns: how many columns are compared.
        word: dtype of the numbers of nodes, "int32" or "int64".
        all_targets: trees add to all targets.
    """

    columns: int
    copies: bool
    targets: int
    all_targets: bool
    word: str
    shift: int

    @property
    def held(self) -> int:
        """Keys of a row, but for the last."""
        return self.columns * (2 if self.copies else 1)


def tree_walks(walked: Walked, alone: bool) -> Emitted:
    """For use in a kernel: `walk(first, end, x, base, columns_, nodes, weights, roots, target, y)`.

    For the rows of x from `first` to `end`: y[row] = base + what the leaves add that the trees of
    roots[groups, 8] lead to; tree t adds to target[t].

    Args:
        alone: the kernel does nothing else.
    """
    held, columns, shift = walked.held, walked.columns, walked.shift

    def key(value, of_nan):
        bits = T.reinterpret("int32", value)
        ordered = T.reinterpret("uint32", bits ^ ((bits >> 31) | T.int32(-(1 << 31))))
        return T.Select(T.isnan(value), T.uint32(of_nan), ordered)

    @inlined
    def read(row, near, x, columns_):
        for k in range(columns):
            value = T.meta_var(x[row, T.Cast("int64", columns_[k])])
            near[k] = key(value, MOST)
            if walked.copies:
                near[columns + k] = key(value, LEAST)
        near[held] = T.uint32(LEAST)

    @inlined
    def to_leaves(at, near, nodes):
        going = T.alloc_buffer((1,), walked.word)
        going[0] = 1
        while going[0] != 0:
            going[0] = 0
            for step in T.unroll(_STEPS):
                for j in T.unroll(GROUP):
                    limit = T.meta_var(T.Cast("uint32", nodes[at[j], 0]))
                    word = nodes[at[j], 1]
                    less = T.meta_var(near[T.Cast("int64", word & ((1 << shift) - 1))] <= limit)
                    place = T.meta_var(T.Cast("int64", word >> shift))
                    at[j] = at[j] + place - T.Cast("int64", less)
                    if step == _STEPS - 1:
                        going[0] = going[0] | ((word >> shift) ^ 1)

    @inlined
    def walk(first, end, x, base, columns_, nodes, weights, roots, target, y):
        near = T.alloc_buffer((held + 1,), "uint32", annotations=_SCALAR if alone else None)
        at = T.alloc_buffer((GROUP,), "int64")
        for r in range(end - first):
            row = T.meta_var(first + r)
            read(row, near, x, columns_)
            for k in range(walked.targets):
                y[row, k] = base[k]
            for group in range(roots.shape[0]):
                for j in T.unroll(GROUP):
                    at[j] = T.Cast("int64", roots[group, j])
                to_leaves(at, near, nodes)
                for j in T.unroll(GROUP):
                    leaf = T.meta_var(T.Cast("int32", nodes[at[j], 0]))
                    if walked.all_targets:
                        for k in range(walked.targets):
                            y[row, k] = y[row, k] + weights[T.Cast("int64", leaf), k]
                    else:
                        to = T.meta_var(T.Cast("int64", target[group * GROUP + j]))
                        y[row, to] = y[row, to] + T.reinterpret("float32", leaf)

    return walk


@cache
def walks_alone(walked: Walked) -> PrimFunc:
    """Kernel (nodes, weights, roots, x[rows, *], base[targets], columns, target)
    -> y[rows, targets].

    `rows` is symbolic; the others are those of `tree_walks`.
    """
    walk, align, targets = tree_walks(walked, alone=True), element_bytes("float32"), walked.targets

    @script.prim_func(private=True, s_tir=True)
    def tree_walks_alone(
        nodes_: T.handle, weights_: T.handle, roots_: T.handle, x_: T.handle, base_: T.handle,
        columns__: T.handle, target_: T.handle, y_: T.handle,
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        rows, features, count, groups = T.int64(), T.int64(), T.int64(), T.int64()
        leaves, trees = T.int64(), T.int64()
        nodes = T.match_buffer(nodes_, (count, 2), walked.word, align=element_bytes(walked.word))
        weights = T.match_buffer(weights_, (leaves, targets), "float32", align=align)
        roots = T.match_buffer(roots_, (groups, GROUP), "int32", align=align)
        x = T.match_buffer(x_, (rows, features), "float32", align=align)
        base = T.match_buffer(base_, (targets,), "float32", align=align)
        columns_ = T.match_buffer(columns__, (walked.columns,), "int32", align=align)
        target = T.match_buffer(target_, (trees,), "int32", align=align)
        y = T.match_buffer(y_, (rows, targets), "float32", align=align)
        walk(T.int64(0), rows, x, base, columns_, nodes, weights, roots, target, y)

    return tree_walks_alone
