"""Constant columns that a layer is given go into its bias."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.passes._concats import axis_of, concat
from graphopt.passes._linear import is_per_column, rows_of, shifted_bias, written
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, w = var("x"), const("w")


def _width(value: Value) -> int | None:
    """The size of the last axis; None where it is not known, or not even the rank."""
    width = value.shape[-1] if value.shape else None
    return width if isinstance(width, int) else None


def _same_in_all_rows(value: Value) -> np.ndarray | None:
    """The row that a matrix repeats if it is known: a filled or an expanded one."""
    node, width = value.producer, _width(value)
    if node is None or value.rank != 2 or width is None:
        return None
    if node.op == "ConstantOfShape":
        fill = node.attr("value")
        return np.full(width, 0.0 if fill is None else fill.item())
    row = node.const(0) if node.op == "Expand" else None
    known = row is not None and row.size in (1, width) and (row.shape or (1,))[-1] == row.size
    return np.broadcast_to(row.reshape(-1), (width,)) if row is not None and known else None


@rule(op.Gemm(op.Concat(x, ...).named("whole"), w, ...))
def constants_into_bias(rw: Rewriter, whole: Value, w: Value, node: Node) -> Value | NoMatch:
    """Gemm(Concat(x, c), w, b) -> Gemm(x, w', b + c w"), where all rows of c are the same"""
    joined, rows, bias = whole.producer, rows_of(w, node), node.const(2)
    assert joined is not None
    if isinstance(rows, NoMatch):
        return rows
    operands = joined.operands
    shifts = [_same_in_all_rows(value) for value in operands]
    widths = [width for value in operands if (width := _width(value)) is not None]
    if axis_of(joined) != 1 or len(widths) < len(operands) or all(s is None for s in shifts):
        return NoMatch("no operand of the concatenation is a known row repeated")
    if not is_per_column(node.input(2)) or all(s is not None for s in shifts):
        return NoMatch("the bias is not a constant per column, or there is nothing else to join")
    kept = np.repeat([s is None for s in shifts], widths)
    shift = np.concatenate([np.zeros(n) if s is None else s for s, n in zip(shifts, widths)])
    if not np.isfinite(rows[~kept]).all():
        return NoMatch("a weight is not finite, so that its product with 0 is NaN")
    rest = concat(rw, [v for v, s in zip(operands, shifts) if s is None], 1)
    bias_value = shifted_bias(rw, node, bias, shift[~kept], rows[~kept])
    attrs = {name: attr for name, attr in node.attrs.items() if name != "beta"}
    weight = written(rw, rows[kept], node, rows.dtype)
    return rw.insert("Gemm", [rest, weight, bias_value], attrs).output


class FoldConstantColumns(RewritePass):
    """Moves columns that are the same in all rows from the operand of a Gemm into its bias.

    Such as zeros that pad the operand to a width that suits some device. Needs a filled or expanded
    operand of a concatenation, and constant weights. Fidelity: reassociates.

    Before:
        (float[N,4] x) => (float[N,8] y)
        <int64[1] two = {2}, float[6,8] w, float[8] b> {
            n = Shape<end=1>(x)
            s = Concat<axis=0>(n, two)
            z = ConstantOfShape(s)
            c = Concat<axis=1>(x, z)
            y = Gemm(c, w, b)
        }

    After:
        (float[N,4] x) => (float[N,8] y) <float[4,8] w, float[8] b> {
            y = Gemm(x, w, b)
        }
    """

    name = "fold-constant-columns"
    fidelity = Fidelity.REASSOCIATES
    rules = (constants_into_bias,)
