"""Trees walked row by row, without branches."""

from __future__ import annotations

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.panels import Emitted
from graphopt.targets.kernels import script
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes

GROUP = 8
"""Trees at a time: one comparison depends on the one before it, so that their loads overlap.

All of a group take as many steps as the deepest.
"""


def tree_walks(targets: int, missing: bool) -> Emitted:
    """For use in a kernel: `walk(first, end, x, base, nodes, weights, roots, depths, y)`.

    For the rows of x from `first` to `end`. A node is four numbers of 32 bits: a column, the bits
    of a limit, and the nodes for rows that are at most the limit and for others; itself at a leaf.
    Groups of trees have `roots`[groups, 8] and `depths`[groups]; y[row] = base + their `weights`.

    Args:
        missing: NaN is at most any limit where the column's sign bit is set.
    """
    place_bits = (1 << 31) - 1

    @inlined
    def walk(first, end, x, base, nodes, weights, roots, depths, y):
        for r in range(end - first):
            row = T.meta_var(first + r)
            for k in range(targets):
                y[row, k] = base[k]
            for group in range(depths.shape[0]):
                at = T.alloc_buffer((GROUP,), "int32")
                for j in T.unroll(GROUP):
                    at[j] = roots[group, j]
                for _step in range(depths[group]):
                    for j in T.unroll(GROUP):
                        node = T.meta_var(T.Cast("int64", at[j]))
                        column = T.meta_var(nodes[node, 0])
                        limit = T.meta_var(T.reinterpret("float32", nodes[node, 1]))
                        value = T.meta_var(x[row, T.Cast("int64", column & T.int32(place_bits))])
                        if missing:
                            low = T.meta_var(T.And(column < 0, T.isnan(value)))
                            at[j] = T.Select(
                                T.Or(value <= limit, low), nodes[node, 2], nodes[node, 3]
                            )
                        else:
                            at[j] = T.Select(value <= limit, nodes[node, 2], nodes[node, 3])
                for j in T.unroll(GROUP):
                    for k in range(targets):
                        y[row, k] = y[row, k] + weights[T.Cast("int64", at[j]), k]

    return walk


@cache
def walks_alone(targets: int, missing: bool) -> PrimFunc:
    """Kernel (nodes, weights, roots, depths, x[rows, *], base[targets]) -> y[rows, targets].

    `rows` is symbolic; the others are those of `tree_walks`.
    """
    walk, align = tree_walks(targets, missing), element_bytes("float32")

    @script.prim_func(private=True, s_tir=True)
    def tree_walks_alone(
        nodes_: T.handle, weights_: T.handle, roots_: T.handle, depths_: T.handle,
        x_: T.handle, base_: T.handle, y_: T.handle,
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        rows, features, walked, groups = T.int64(), T.int64(), T.int64(), T.int64()
        nodes = T.match_buffer(nodes_, (walked, 4), "int32", align=align)
        weights = T.match_buffer(weights_, (walked, targets), "float32", align=align)
        roots = T.match_buffer(roots_, (groups, GROUP), "int32", align=align)
        depths = T.match_buffer(depths_, (groups,), "int32", align=align)
        x = T.match_buffer(x_, (rows, features), "float32", align=align)
        base = T.match_buffer(base_, (targets,), "float32", align=align)
        y = T.match_buffer(y_, (rows, targets), "float32", align=align)
        walk(T.int64(0), rows, x, base, nodes, weights, roots, depths, y)

    return tree_walks_alone
