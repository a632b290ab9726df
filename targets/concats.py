"""Concatenations whose operands lie side by side in every row."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.ir.dims import product
from graphopt.ir.graph import Node, Value
from graphopt.rewrite import NoMatch


@dataclass(frozen=True)
class Columns:
    """The operands of a Concat as columns of the same rows.

    Attributes:
        axis: the axis that is joined: those before it count rows.
        operands: from left to right.
        widths: how many elements each has in a row.
    """

    axis: int
    operands: list[Value]
    widths: list[int]


def joined_columns(concat: Node) -> Columns | NoMatch:
    """The columns that a Concat of float32 joins, if their widths are known when compiling."""
    operands = concat.operands
    shapes = [value.shape for value in operands]
    if concat.output.dtype != "float32" or any(shape is None for shape in shapes):
        return NoMatch("not float32, or of unknown rank")
    axis = concat.attr("axis") % (concat.output.rank or 1)
    if len({shape[:axis] + shape[axis + 1 :] for shape in shapes if shape is not None}) > 1:
        return NoMatch("whether its operands agree is known only at run time")
    widths = [product(value.tensor.dims[axis:]) for value in operands]
    known = [width for width in widths if isinstance(width, int)]
    if len(known) < len(widths):
        return NoMatch("the width of an operand is known only at run time")
    return Columns(axis, operands, known)
