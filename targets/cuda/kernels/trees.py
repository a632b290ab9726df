"""Ensembles of decision trees: some neighbouring threads share a row, each walks trees of its own.

A node is 16 bytes, read at once. The first levels of all trees come first, so that threads which
begin together read side by side. Each thread adds up the leaves that it finds, and the sums of a
row are added in one order, whatever the batch: by pairs of threads within a warp, then warp by
warp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.targets.cuda.kernels import warps
from graphopt.targets.cuda.kernels.blocks import covering, launched, wait
from graphopt.targets.relax.primfunc import int64

THREADS = 256
_UNROLLED = 8  # sums that a thread keeps in registers
_FEATURE = 0x7FFFFFFF  # the bits of a node's first number that are not its sign


def sharing(trees: int) -> int:
    """How many threads share a row: a power of two, with two trees or more for each."""
    return min(THREADS, 1 << max(0, (trees // 2).bit_length() - 1))


def ensemble(x: Any, nodes: Any, roots: Any, weights: Any, base: Any, out: Any) -> None:
    """The statements of the kernel: out[rows, k] = base[k] + the weights of a leaf of each tree.

    Args:
        x: float32 [rows, features].
        nodes: int32 [n, 4]: the feature, with the sign bit where NaN counts as less; the bits of
            the threshold, float32; what comes next where the feature is not above it; and where it
            is. What comes next is a node, or a leaf l as -1 - l.
        roots: int32 [trees], of the same kind.
        weights: float32 [leaves, k].
        base: float32 [k].
    """
    rows, trees, targets = int64(x.shape[0]), int(roots.shape[0]), int(weights.shape[1])
    group = sharing(trees)
    each = THREADS // group

    with launched(covering(rows, each), THREADS) as (block, thread):
        sums = T.alloc_buffer([targets], "float32", scope="local")
        row, lane = T.bind(block * each + thread // group), T.bind(thread % group)
        _for_each(targets, lambda k: T.buffer_store(sums, T.float32(0), [k]))
        with T.If(row < rows), T.Then():
            _walk_all(x, row, nodes, roots, weights, lane, group, sums)
        if group <= warps.WARP:
            mask = warps.neighbours(thread, group)
            _for_each(targets, lambda k: warps.added(sums, k, group, mask))
        else:
            _add_warps(sums, thread, targets, group)
        with T.If(tirx.all(row < rows, lane == 0)), T.Then():
            _for_each(targets, lambda k: T.buffer_store(out, base[k] + sums[k], [row, k]))


def _for_each(count: int, body: Callable[[Any], None]) -> None:
    with T.unroll(count) if count <= _UNROLLED else T.serial(count) as k:
        body(k)


def _walk_all(
    x: Any, row: Any, nodes: Any, roots: Any, weights: Any, lane: Any, group: int, sums: Any
) -> None:
    """sums += the leaves of the trees lane, lane + group, …"""
    trees = int(roots.shape[0])
    at = T.alloc_buffer([1], "int32", scope="local")
    node = T.alloc_buffer([4], "int32", scope="local")
    with T.serial(int64(0), int64(-(-trees // group))) as turn:
        tree = T.bind(turn * group + lane)
        with T.If(tree < trees), T.Then():
            T.buffer_store(at, roots[tree], [0])
            with T.While(at[0] >= 0):
                with T.vectorized(4) as j:
                    T.buffer_store(node, nodes[at[0], j], [j])
                value = T.bind(x[row, tirx.bitwise_and(node[0], _FEATURE)])
                missing = tirx.all(tirx.isnan(value), node[0] < 0)
                less = tirx.any(value <= tirx.reinterpret("float32", node[1]), missing)
                T.buffer_store(at, T.Select(less, node[2], node[3]), [0])
            leaf = T.bind(-1 - at[0])
            _for_each(
                int(weights.shape[1]),
                lambda k: T.buffer_store(sums, sums[k] + weights[leaf, k], [k]),
            )


def _add_warps(sums: Any, thread: Any, targets: int, group: int) -> None:
    """sums = those of all threads of a row, at its first thread."""
    count = group // warps.WARP
    shared = T.alloc_buffer([THREADS // warps.WARP], "float32", scope="shared")

    def add(k: Any) -> None:
        warps.added(sums, k)
        wait()  # until all have read what was there before
        with T.If(thread % warps.WARP == 0), T.Then():
            T.buffer_store(shared, sums[k], [thread // warps.WARP])
        wait()
        total = T.float32(0)
        for part in range(count):
            total = total + shared[thread // group * count + part]
        T.buffer_store(sums, total, [k])

    _for_each(targets, add)
