"""Rows that are sorted, computed one by one and put back in order are computed where they are."""

from __future__ import annotations

from graphopt.ir.graph import Node, Value
from graphopt.passes._all_rows import AllRows, Stuck
from graphopt.passes._shapes import ints_of
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

x, order, table = var("x"), var("order"), var("table")


@rule(op.Gather(x, order))
def compute_unsorted(rw: Rewriter, x: Value, order: Value, node: Node) -> Value | NoMatch | None:
    """Gather(f(Gather(x, order)), inverse of order) -> f(x), where f computes row by row"""
    sort = _sort_undone_by(order)
    if sort is None or x.shape is None:
        return None
    keys, places = sort.inputs[0], sort.outputs[1]

    def end(value: Value, axis: int) -> Value | None:
        if value is sort.output:
            return keys
        picked = value.producer
        if picked is None or picked.op != "Gather" or picked.inputs[1] is not places:
            return None
        return picked.inputs[0] if picked.attr("axis") % len(value.tensor.dims) == axis else None

    try:
        return AllRows(rw, sort, end).of(x, node.attr("axis") % len(x.shape))
    except Stuck as reason:
        return NoMatch(str(reason))


@rule(op.Gather(op.Gather(table, x, axis=0), order, axis=0))
def look_up_each(rw: Rewriter, table: Value, x: Value, order: Value) -> Value | None:
    """Gather(Gather(table, values of Unique(ids)), inverse of Unique(ids)) -> Gather(table, ids)"""
    node = order.producer
    if node is None or node.op != "Unique" or node.attr("axis") is not None:
        return None
    ids = node.inputs[0]
    if ids is None or x is not node.outputs[0] or order is not node.outputs[2]:
        return None
    return rw.op.Gather(table, rw.op.Reshape(ids, rw.ints(-1)), axis=0)


def _sort_undone_by(order: Value) -> Node | None:
    """The TopK that sorts all keys of a vector, if `order` says where each key has come from."""
    node = order.producer
    if node is None:
        return None
    if node.op == "ScatterElements" and node.attr("reduction", "none") == "none":
        return _full_sort(node.inputs[1]) if _counts_up(node.inputs[2]) else None
    # The order that sorts an order undoes it.
    ascending = node.op == "TopK" and not node.attr("largest") and order is node.outputs[1]
    return _full_sort(node.inputs[0]) if ascending and _full_sort(order) is node else None


def _full_sort(places: Value | None) -> Node | None:
    """The TopK that gives `places`, if it takes as many keys as there are."""
    node = None if places is None else places.producer
    if node is None or node.op != "TopK" or places is not node.outputs[1]:
        return None
    keys = node.inputs[0]
    assert keys is not None
    known = keys.shape is not None and len(keys.shape) == 1 and places.shape == keys.shape
    return node if known else None


def _counts_up(value: Value | None) -> bool:
    """True for 0, 1, 2, …"""
    node = None if value is None else value.producer
    if node is None or node.op != "Range":
        return value is not None and ints_of(value) == list(range(len(ints_of(value) or ())))
    return ints_of(node.inputs[0]) == [0] and ints_of(node.inputs[2]) == [1]


class CancelSorts(RewritePass):
    """Computes rows in place where they were sorted first and put back afterwards.

    Needs ops in between that compute a row from the same row of their operands. PyTorch sorts the
    sequences of a batch by their lengths before a recurrent layer, and brings the results back in
    order. Engines have no use for that, and each move reads and writes all of it. So it is with ids
    that are looked up once each (Unique) and brought back; what is computed from rows in between
    stays, for it may cost more than the sort. Fidelity: reassociates (a product over rows in
    another order may be summed in another order).

    Before:
        (float[N,4] x, int64[N] lengths) => (float[N,8] y)
        <float[4,8] w, int64 zero = {0}, int64 one = {1}> {
            n = Shape(lengths)
            sorted, order = TopK<axis=0>(lengths, n)
            s = Gather(x, order)
            h = MatMul(s, w)
            k = Squeeze(n)
            counted = Range(zero, k, one)
            back = ScatterElements(order, order, counted)
            y = Gather(h, back)
        }

    After:
        (float[N,4] x, int64[N] lengths) => (float[N,8] y) <float[4,8] w> {
            y = MatMul(x, w)
        }
    """

    name = "cancel-sorts"
    fidelity = Fidelity.REASSOCIATES
    rules = (compute_unsorted, look_up_each)
