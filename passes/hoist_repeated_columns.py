"""Layers over a concatenation: what is the same in all rows is multiplied once."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.passes._concats import axis_of, concat
from graphopt.passes._linear import is_per_column, turned
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, w = var("x"), const("w")
MIN_PRODUCTS = 1024
"""Products saved per row from which this was measured to pay in ONNX Runtime, at any batch size."""


def _narrow(value: Value) -> Value | None:
    """The one row that `value` repeats, as an expression; None if it is not that."""
    node = value.producer
    if node is None or node.op != "Expand":
        return None
    source = node.inputs[0]
    if source is None or source.const is not None or source.rank != value.rank:
        return None
    one_row = set(source.tensor.dims[:-1]) == {1}
    return source if one_row and source.tensor.dims[-1] == value.tensor.dims[-1] else None


def _parts(node: Node) -> list[tuple[Value, Value | None, int]] | NoMatch:
    """Operands of a Concat of columns: each, the row that it repeats if so, and its width."""
    operands = node.operands
    if axis_of(node) != (node.output.rank or 0) - 1:
        return NoMatch("it does not join columns")
    parts = [(v, _narrow(v), v.tensor.dims[-1]) for v in operands]
    if all(narrow is None for _, narrow, _ in parts):
        return NoMatch("no operand repeats one row")
    if all(narrow is not None for _, narrow, _ in parts):
        return NoMatch("all operands repeat one row")
    known = [(v, narrow, d) for v, narrow, d in parts if isinstance(d, int)]
    return known if len(known) == len(parts) else NoMatch("the width of an operand is not known")


@rule(
    op.Gemm(op.Concat(x, ...).named("whole").shared(), w, ...),
    op.MatMul(op.Concat(x, ...).named("whole").shared(), w),
)
def repeated_columns_once(rw: Rewriter, whole: Value, w: Value, node: Node) -> Value | NoMatch:
    """MatMul(Concat(Expand(u), v), w) -> Add(MatMul(v, w2), MatMul(u, w1)), likewise for Gemm"""
    assert whole.producer is not None and w.const is not None
    parts = _parts(whole.producer)
    if isinstance(parts, NoMatch):
        return parts
    if w.const.ndim != 2 or node.attr("transA", 0) or not is_per_column(node.input(2)):
        return NoMatch("its weight is not one matrix, or its bias is not a constant per column")
    rows = turned(node, w.const)
    repeated, widths = [n is not None for _, n, _ in parts], [d for _, _, d in parts]
    if int(np.dot(repeated, widths)) * rows.shape[1] < MIN_PRODUCTS:
        return NoMatch(f"it would save less than {MIN_PRODUCTS} products a row")
    last = len(whole.tensor.dims) - 1
    once = concat(rw, [n for _, n, _ in parts if n is not None], last)
    others = concat(rw, [v for v, n, _ in parts if n is None], last)
    first, second = (
        rw.const(np.ascontiguousarray(rows[np.repeat(chosen, widths)]))
        for chosen in (repeated, np.logical_not(repeated))
    )
    if node.op == "MatMul":
        return rw.op.Add(rw.op.MatMul(others, second), rw.op.MatMul(once, first))
    alpha, beta = node.attr("alpha"), node.attr("beta")
    shared = rw.op.Gemm(once, first, *node.inputs[2:], alpha=alpha, beta=beta)
    return rw.op.Gemm(others, second, shared, alpha=alpha)


class HoistRepeatedColumns(RewritePass):
    """Multiplies columns that are the same for many rows once, apart from the other columns.

    Needs joined columns of known width, some of which repeat one row, and one matrix of weights.
    Where one user is scored against many candidates, exporters repeat what is known of the user for
    every candidate, and join it with what is known of that. The first layer over both is the sum of
    a layer over the user, computed once, and one over the candidates. Fidelity: reassociates.

    Before:
        (float[1,48] user, float[N,4] item) => (float[N,64] y)
        <int64[1] width = {48}, float[52,64] w, float[64] b> {
            n = Shape<end=1>(item)
            s = Concat<axis=0>(n, width)
            u = Expand(user, s)
            v = Concat<axis=1>(u, item)
            y = Gemm(v, w, b)
        }

    After:
        (float[1,48] user, float[N,4] item) => (float[N,64] y)
        <float[48,64] w1, float[4,64] w2, float[64] b> {
            u = Gemm(user, w1, b)
            y = Gemm(item, w2, u)
        }
    """

    name = "hoist-repeated-columns"
    fidelity = Fidelity.REASSOCIATES
    rules = (repeated_columns_once,)
