"""Layers on rows that are chosen several times are computed before the choice."""

from __future__ import annotations

from graphopt.ir.graph import Value
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, w, index = var("x"), const("w"), const("index")


@rule(op.MatMul(op.Gather(x, index).named("chosen"), w))
def gather_after_layer(
    rw: Rewriter, x: Value, index: Value, w: Value, chosen: Value
) -> Value | NoMatch:
    """MatMul(Gather(x, i), w) -> Gather(MatMul(x, w), i), where i chooses more rows than x has"""
    positions, gather = index.const, chosen.producer
    assert positions is not None and w.const is not None and gather is not None
    if positions.ndim != 1 or w.const.ndim != 2 or (x.rank or 0) < 2:
        return NoMatch("it does not multiply chosen rows with one matrix")
    axis = gather.attr("axis") % x.tensor.rank
    rows = x.tensor.dims[axis]
    if axis == x.tensor.rank - 1:  # type: ignore[operator]
        return NoMatch("it chooses columns")
    if not isinstance(rows, int) or len(positions) <= rows:
        return NoMatch("it chooses no more rows than there are")
    return rw.op.Gather(rw.op.MatMul(x, w), index, axis=axis)


class SinkGathers(RewritePass):
    """Multiplies each feature by a matrix once, not once for every pair that it is in.

    Bilinear interactions (FiBiNET) gather the left features of all pairs and multiply those. Needs
    constant positions, more of them than there are features. Fidelity: reassociates.

    Before:
        (float[N,3,4] x) => (float[N,5,6] y) <int64[5] i = {0, 0, 1, 1, 2}, float[4,6] w> {
            g = Gather<axis=1>(x, i)
            y = MatMul(g, w)
        }

    After:
        (float[N,3,4] x) => (float[N,5,6] y) <int64[5] i = {0, 0, 1, 1, 2}, float[4,6] w> {
            m = MatMul(x, w)
            y = Gather<axis=1>(m, i)
        }
    """

    name = "sink-gathers"
    fidelity = Fidelity.REASSOCIATES
    rules = (gather_after_layer,)
