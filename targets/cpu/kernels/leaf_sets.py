"""Trees without walks: each comparison takes from a set of leaves those that it rules out."""

from __future__ import annotations

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.panels import Emitted
from graphopt.targets.cpu.kernels.tree_walks import GROUP, Walked, tree_walks
from graphopt.targets.kernels import script
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes

LEAVES = 32
"""In a set, whose bits are a number of 32."""

_SIDE, _ROOM = 4, 16 << 10
"""Vectors of rows that are compared with each limit that is read, if so many bytes hold them."""

_PERMUTING = 16  # lanes of AVX-512, which finds elements among two vectors by one instruction


Kinds = tuple[bool, bool]
"""Some tree has more than one set; there are tests for members."""


@cache
def leaf_sets(walked: Walked, kinds: Kinds, lanes: int, few: int) -> PrimFunc:
    """Kernel for rows of float32, whose number is symbolic.

    (nodes, weights, roots, x[rows, *], base[targets], columns int32[columns], target[*],
    starts int32[trees + 1], limit_starts[sets + 1], limit_column[*], limits[*], limit_masks[*],
    test_starts[sets + 1], term_starts[tests + 1], test_masks[tests], term_column[*], terms[*],
    leaves[sets, targets or 1, 32])
    -> y[rows, targets]. The sets of a tree are `starts[tree]` up to `starts[tree + 1]`, the one
    with its last leaves first. A leaf is the first in the last set of its tree that is not empty.

    Args:
        walked: what the first arguments are made for. Columns are numbered as keys of a row are.
        lanes: float32 elements in a vector register.
        few: how many rows are walked through the trees, as `tree_walks` does, rather than compared.
    """
    columns, targets, held = walked.columns, walked.targets, walked.held
    own, align = targets if walked.all_targets else 1, element_bytes("float32")
    wide = lanes * max(1, min(_SIDE, _ROOM // (max(held, targets) * lanes * align)))
    by_some, by_one = (_of_rows(width, lanes, walked, kinds) for width in (wide, lanes))
    walk = tree_walks(walked, alone=False)

    @script.prim_func(private=True, s_tir=True)
    def leaf_sets(
        nodes_: T.handle, weights_: T.handle, roots_: T.handle, x_: T.handle, base_: T.handle,
        columns__: T.handle, target_: T.handle, starts_: T.handle,
        limit_starts_: T.handle, limit_column_: T.handle, limits_: T.handle, limit_masks_: T.handle,
        test_starts_: T.handle, term_starts_: T.handle, test_masks_: T.handle,
        term_column_: T.handle, terms_: T.handle, leaves_: T.handle, y_: T.handle,
    ):  # fmt: skip
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        rows, features, bounds, count = T.int64(), T.int64(), T.int64(), T.int64()
        compared, members, asked = T.int64(), T.int64(), T.int64()
        stored, rows_added, groups, filled = T.int64(), T.int64(), T.int64(), T.int64()
        nodes = T.match_buffer(nodes_, (stored, 2), walked.word, align=element_bytes(walked.word))
        weights = T.match_buffer(weights_, (rows_added, targets), "float32", align=align)
        roots = T.match_buffer(roots_, (groups, GROUP), "int32", align=align)
        x = T.match_buffer(x_, (rows, features), "float32", align=align)
        base = T.match_buffer(base_, (targets,), "float32", align=align)
        columns_ = T.match_buffer(columns__, (columns,), "int32", align=align)
        starts = T.match_buffer(starts_, (bounds,), "int32", align=align)
        limit_starts = T.match_buffer(limit_starts_, (count + 1,), "int32", align=align)
        limit_column = T.match_buffer(limit_column_, (compared,), "int32", align=align)
        limits = T.match_buffer(limits_, (compared,), "float32", align=align)
        limit_masks = T.match_buffer(limit_masks_, (compared,), "int32", align=align)
        test_starts = T.match_buffer(test_starts_, (count + 1,), "int32", align=align)
        term_starts = T.match_buffer(term_starts_, (asked + 1,), "int32", align=align)
        test_masks = T.match_buffer(test_masks_, (asked,), "int32", align=align)
        term_column = T.match_buffer(term_column_, (members,), "int32", align=align)
        terms = T.match_buffer(terms_, (members,), "float32", align=align)
        target = T.match_buffer(target_, (filled,), "int32", align=align)
        leaves = T.match_buffer(leaves_, (count, own, LEAVES), "float32", align=align)
        y = T.match_buffer(y_, (rows, targets), "float32", align=align)
        for block in range(rows // wide):
            by_some(block * wide, block * wide + wide, x, base, columns_, starts, limit_starts,
                    limit_column, limits, limit_masks, test_starts, term_starts, test_masks,
                    term_column, terms, target, leaves, y)  # fmt: skip
        for block in range((rows % wide + lanes - 1) // lanes):
            first = T.meta_var(rows - rows % wide + block * lanes)
            end = T.meta_var(T.min(first + lanes, rows))
            if end - first <= few:
                walk(first, end, x, base, columns_, nodes, weights, roots, target, y)
            else:
                by_one(first, end, x, base, columns_, starts, limit_starts, limit_column, limits,
                       limit_masks, test_starts, term_starts, test_masks, term_column, terms,
                       target, leaves, y)  # fmt: skip

    return leaf_sets


# Loops begin at 0: TVM forgets where others begin in the bounds of loops within them.


def _comparing(width: int, lanes: int) -> tuple[Emitted, Emitted]:
    """For use in a kernel: what a set keeps after all limits of its tree, and after all tests for
    members, in `width` rows.
    """
    side = width // lanes

    @inlined
    def compare(bits, near, n, starts, column, limits, masks):
        for i in range(starts[n + 1] - starts[n]):
            j = T.meta_var(starts[n] + i)
            for part in T.unroll(side):
                for lane in T.vectorized(lanes):
                    at = T.meta_var(part * lanes + lane)
                    less = T.meta_var(near[column[j], at] <= limits[j])
                    bits[at] = T.Select(less, bits[at], bits[at] & masks[j])

    @inlined
    def find(bits, other, near, n, starts, term_starts, masks, column, terms):
        for i in range(starts[n + 1] - starts[n]):
            j = T.meta_var(starts[n] + i)
            for lane in T.vectorized(width):
                other[lane] = T.int32(-1)
            for term in range(term_starts[j + 1] - term_starts[j]):
                k = T.meta_var(term_starts[j] + term)
                for lane in T.vectorized(width):
                    same = T.meta_var(near[column[k], lane] == terms[k])
                    other[lane] = T.Select(same, T.int32(0), other[lane])
            for lane in T.vectorized(width):
                bits[lane] = bits[lane] & (masks[j] | ~other[lane])

    return compare, find


def _taking(width: int, lanes: int, own: int, several: bool) -> Emitted:
    """For use in a kernel: the `own` scores of the first leaf in a set, in `width` rows."""
    side = width // lanes

    def leaf_of(leaves, n, k, bits):
        name = "llvm.ctlz"
        place = T.call_llvm_pure_intrin(f"int32x{lanes}", name, bits, T.bool(False))
        if lanes != _PERMUTING:
            return leaves[n, k, place]
        low, high = (leaves[n, k, T.ramp(half * lanes, 1, lanes)] for half in (0, 1))
        name = "llvm.x86.avx512.vpermi2var.ps.512"
        return T.call_llvm_pure_intrin(f"float32x{lanes}", name, low, place, high)

    @inlined
    def take(score, bits, leaves, n):
        for k in range(own):
            for part in T.unroll(side):
                at = T.meta_var(T.ramp(part * lanes, 1, lanes))
                found = T.meta_var(leaf_of(leaves, n, k, bits[at]))
                if several:
                    empty = T.meta_var(bits[at] == T.Broadcast(T.int32(0), lanes))
                    score[k, at] = T.Select(empty, score[k, at], found)
                else:
                    score[k, at] = found

    return take


def _of_rows(width: int, lanes: int, walked: Walked, kinds: Kinds) -> Emitted:
    """For use in a kernel: its results for rows from `first` to `end`, of which there are `width`
    at most.
    """
    several, tests = kinds
    columns, targets, held = walked.columns, walked.targets, walked.held
    own = targets if walked.all_targets else 1
    compare, find = _comparing(width, lanes)
    take = _taking(width, lanes, own, several)

    @inlined
    def read(first, end, near, x, columns_, base, total):
        for k in range(columns):
            for lane in range(width):
                row = T.meta_var(T.min(first + lane, end - 1))
                near[k, lane] = x[row, T.Cast("int64", columns_[k])]
        if walked.copies:
            for k in range(columns):
                for lane in T.vectorized(width):
                    value = T.meta_var(near[k, lane])
                    near[columns + k, lane] = T.Select(T.isnan(value), T.float32("-inf"), value)
        for k in range(targets):
            for lane in T.vectorized(width):
                total[k, lane] = base[k]

    @inlined
    def add_up(first, end, x, base, columns_, starts, limit_starts, limit_column, limits,
               limit_masks, test_starts, term_starts, test_masks, term_column, terms, target,
               leaves, y):  # fmt: skip
        near = T.alloc_buffer((held, width), "float32")
        total = T.alloc_buffer((targets, width), "float32")
        bits = T.alloc_buffer((width,), "int32")
        other = T.alloc_buffer((width,), "int32")
        score = T.alloc_buffer((own, width), "float32")
        read(first, end, near, x, columns_, base, total)
        for tree in range(starts.shape[0] - 1):
            for i in range(starts[tree + 1] - starts[tree]):
                n = T.meta_var(starts[tree] + i)
                for lane in T.vectorized(width):
                    bits[lane] = T.int32(-1)
                compare(bits, near, n, limit_starts, limit_column, limits, limit_masks)
                if tests:
                    find(bits, other, near, n, test_starts, term_starts, test_masks, term_column,
                         terms)  # fmt: skip
                take(score, bits, leaves, n)
            for k in range(own):
                for lane in T.vectorized(width):
                    to = T.meta_var(T.Cast("int64", target[tree]) + k)
                    total[to, lane] = total[to, lane] + score[k, lane]
        for lane in range(end - first):
            for k in range(targets):
                y[first + lane, k] = total[k, lane]

    return add_up
