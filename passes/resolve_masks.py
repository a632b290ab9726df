"""What one constant mask selects in every row has constant positions."""

from __future__ import annotations

import math

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, mask, shape = var("x"), const("mask"), var("shape")


@rule(op.GatherND(x, op.Transpose(op.NonZero(op.Expand(mask, shape).named("spread")))))
def mask_to_positions(
    rw: Rewriter, x: Value, mask: Value, spread: Value, node: Node
) -> Value | NoMatch:
    """GatherND(x, NonZero(Expand(mask))) -> Gather(x, positions of each row)"""
    marks, dims = mask.const, x.shape
    assert marks is not None
    if not dims or spread.shape != dims or node.attr("batch_dims", 0):
        return NoMatch("the mask does not have the shape of what it selects from")
    own = marks.ndim - next((k for k, n in enumerate(marks.shape) if n != 1), marks.ndim)
    row = dims[len(dims) - own :]
    if not own or own == len(dims) or not all(isinstance(dim, int) for dim in row):
        return NoMatch("the mask is not the same for rows of known size")
    within = np.broadcast_to(marks.reshape(marks.shape[marks.ndim - own :]), row)
    positions = np.flatnonzero(within)
    if not positions.size:
        return NoMatch("it selects nothing")
    rows = rw.op.Reshape(x, rw.ints(-1, math.prod(row)))
    return rw.op.Reshape(rw.op.Gather(rows, rw.ints(*positions.tolist()), axis=1), rw.ints(-1))


class ResolveMasks(RewritePass):
    """Replaces selections by a constant mask by gathers at constant positions.

    Needs a mask that is the same for all rows, and rows of known size. PyTorch writes
    `masked_select` so; how much there is to take would be known at run time only. Fidelity: exact.

    Before:
        (float[N,2,2] x) => (float[K] y) <int64[3] s = {-1, 2, 2}, bool[2,2] m = {0, 1, 1, 0}> {
            n = Shape<end=1>(x)
            two = Shape<start=1>(x)
            t = Concat<axis=0>(n, two)
            e = Expand(m, t)
            z = NonZero(e)
            at = Transpose<perm=[1, 0]>(z)
            y = GatherND(x, at)
        }

    After:
        (float[N,2,2] x) => (float[K] y) <
            int64[2] rows = {-1, 4}, int64[2] at = {1, 2}, int64[1] flat = {-1}
        > {
            r = Reshape(x, rows)
            g = Gather<axis=1>(r, at)
            y = Reshape(g, flat)
        }
    """

    name = "resolve-masks"
    fidelity = Fidelity.EXACT
    rules = (mask_to_positions,)
