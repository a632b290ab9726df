"""Products of one-hot rows and a matrix become lookups."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.passes._linear import is_per_column, turned
from graphopt.passes._shapes import ints_of, reshaped
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

ids, depth, values, w, hot = var("ids"), var("depth"), const("values"), const("w"), var("hot")
classes = const("classes")
_one_hot = op.OneHot(ids, depth, values).named("hot")
_equal = (op.Cast(op.Equal(ids, classes)), op.Cast(op.Cast(op.Equal(ids, classes))))
MAX_GROWTH = 1 << 20
"""Bytes that a table may take more than the matrix; above, one-hot rows are rare."""


def _rows(node: Node, w: Value) -> np.ndarray | NoMatch:
    """What each id adds to the result, and last what an id outside gives: float[rows + 1, dim]."""
    weight, bias = w.const, node.const(2)
    assert weight is not None
    if weight.ndim != 2 or node.attr("transA", 0) or not is_per_column(node.input(2)):
        return NoMatch("its weight is not one matrix, or its bias is not a constant per column")
    rows = turned(node, weight)
    if not np.isfinite(rows).all():
        return NoMatch("a weight is not finite, so that its product with 0 is NaN")
    if rows.nbytes > MAX_GROWTH:
        return NoMatch(f"the table would take {rows.nbytes} bytes more, above {MAX_GROWTH}")
    scaled = np.concatenate([rows, np.zeros_like(rows[:1])])
    if node.op == "Gemm":
        scaled = scaled * rows.dtype.type(node.attr("alpha"))
        if bias is not None:
            scaled = scaled + bias.reshape(-1) * rows.dtype.type(node.attr("beta"))
    return scaled


@rule(
    *(p for one in (_one_hot, op.Cast(_one_hot)) for p in (op.MatMul(one, w), op.Gemm(one, w, ...)))
)
def one_hot_product_to_gather(
    rw: Rewriter, ids: Value, depth: Value, values: Value, w: Value, hot: Value, node: Node
) -> Value | NoMatch:
    """MatMul(OneHot(ids), w) -> Gather(w, ids), zeros for an id outside as OneHot gives them"""
    assert hot.producer is not None and values.const is not None
    if hot.producer.attr("axis") not in (-1, (hot.rank or 0) - 1):
        return NoMatch("the one-hot rows do not lie along the last axis")
    if ids.dtype not in ("int32", "int64") or values.const.tolist() != [0, 1]:
        return NoMatch("ids are not integers, or what marks them is not 0 and 1")
    rows = _rows(node, w)
    if isinstance(rows, NoMatch):
        return rows
    size = len(rows) - 1
    if ints_of(depth) != [size]:
        return NoMatch("the number of classes is not known to be that of the rows")
    # Both rows before and after: an id from the end finds its row in the second half, and one
    # outside on either side is clipped to the row between the halves.
    table = rw.const(np.concatenate([rows, rows[:-1]]))
    bounds = [rw.const(np.array(bound, ids.dtype)) for bound in (-size - 1, size)]
    return rw.op.Gather(table, rw.op.Clip(ids, *bounds), axis=0)


@rule(*(p for one in _equal for p in (op.MatMul(one, w), op.Gemm(one, w, ...))))
def comparison_product_to_gather(
    rw: Rewriter, ids: Value, classes: Value, w: Value, node: Node
) -> Value | NoMatch:
    """MatMul(ids == [0, 1, …], w) -> Gather(w, ids), zeros for an id that is none of them"""
    numbers, shape = classes.const, ids.shape
    assert numbers is not None
    if ids.dtype not in ("int32", "int64") or not shape or shape[-1] != 1:
        return NoMatch("it does not compare one whole number a row")
    rows = _rows(node, w)
    if isinstance(rows, NoMatch):
        return rows
    size = len(rows) - 1
    if numbers.shape[-1:] != (size,) or not np.array_equal(numbers.reshape(-1), np.arange(size)):
        return NoMatch("it does not compare with 0, 1, 2 and so on, one for each row")
    if len(shape) != node.output.rank:
        return NoMatch("its result has another rank than what it compares")
    bare = reshaped(rw, ids, shape[:-1])
    if isinstance(bare, NoMatch):
        return bare
    # One below 0 reads the last row, which is that of zeros.
    bounds = [rw.const(np.array(bound, ids.dtype)) for bound in (-1, size)]
    row = rw.op.Clip(bare, *bounds)
    return rw.op.Gather(rw.const(rows), row, axis=0)


class RaiseLookups(RewritePass):
    """Replaces products of one-hot rows and a constant matrix by lookups.

    Needs integer ids, as many classes as the finite constant matrix has rows, and marks 0 and 1.
    OneHot makes these, or a comparison of ids with 0, 1, 2 and so on. An id outside, which they
    turn into zeros, still gives zeros (and the bias, if there is one). For that the table also has
    a row of zeros, and for OneHot, where ids may count from the end, all rows twice. In ONNX
    Runtime it is faster at any number of classes and any batch size. Fidelity: reassociates.

    Before:
        (int64[N] ids) => (float[N,4] y) <int64 depth = {9}, float[2] marks = {0, 1}, float[9,4] w>
        {
            hot = OneHot(ids, depth, marks)
            y = MatMul(hot, w)
        }

    After:
        (int64[N] ids) => (float[N,4] y) <int64 low = {-10}, int64 high = {9}, float[19,4] table> {
            inside = Clip(ids, low, high)
            y = Gather(table, inside)
        }
    """

    name = "raise-lookups"
    fidelity = Fidelity.REASSOCIATES
    rules = (one_hot_product_to_gather, comparison_product_to_gather)
