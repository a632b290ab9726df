"""NonZero, Compress and Unique: positions by one block, all else by many."""

from __future__ import annotations

from typing import Any

from tvm import relax, te, tirx

from graphopt.ir import dims
from graphopt.ir.graph import Node, Value
from graphopt.targets.cpu.kernels.ordering import precedes
from graphopt.targets.cuda.kernels import places
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.cuda.ops.lines import sorted_lines
from graphopt.targets.relax.loops import loops
from graphopt.targets.relax.lowering import Lowering, compute, int64
from graphopt.targets.relax.ops.selection import compress, counted, nonzero, unique

_MOST_COLUMNS = 64  # of rows that Unique compares; each is a sort


@lowers("NonZero")
def _nonzero(lower: CudaLowering, node: Node) -> relax.Expr:
    return nonzero(lower, node, _positions)


@lowers("Compress")
def _compress(lower: CudaLowering, node: Node) -> relax.Expr:
    return compress(lower, node, _positions)


def _positions(lower: Lowering, value: Value, axis: int, result: Value) -> tuple[relax.Expr, Any]:
    flat = lower.reshape(lower.expr(value), [lower.dim(dims.product(value.tensor.dims))])
    (count,) = loops(lower, places.count_nonzero, [flat], [([1], "int64")])
    size = counted(lower, result, axis, count)
    return _found(lower, flat, size), size


def _found(lower: Lowering, flat: relax.Expr, size: Any) -> relax.Expr:
    """The positions of the `size` elements that are not zero."""
    return loops(lower, places.find_nonzero, [flat], [([size], "int64")])[0]


@lowers("Unique")
def _unique(lower: CudaLowering, node: Node) -> list[relax.Expr]:
    return unique(lower, node, _distinct)


def _distinct(
    lower: Lowering, node: Node, rows: relax.Expr, length: Any, width: Any, axis: int
) -> tuple[list[relax.Expr], Any]:
    """See `selection.Distinct`."""
    if not isinstance(width, int) or width > _MOST_COLUMNS:
        raise lower.unsupported(f"it compares rows of more than {_MOST_COLUMNS} elements")
    dtype = node.output.dtype
    order = _sorted_rows(lower, rows, length, width, dtype)

    def is_new(x: te.Tensor, by: te.Tensor) -> te.Tensor:
        def element(j: Any) -> Any:
            before = tirx.if_then_else(j > 0, by(j - 1), by(j))
            pairs = [(x(before, k), x(by(j), k)) for k in range(width)]
            ways = [precedes(*way, dtype, False) for a, b in pairs for way in ((a, b), (b, a))]
            return tirx.any(tirx.EQ(j, int64(0)), *ways)

        return compute([length], element, "is_new")

    marks = lower.te(is_new, rows, order)
    (count,) = loops(lower, places.count_nonzero, [marks], [([1], "int64")])
    size = counted(lower, node.output, axis, count)
    starts = _found(lower, marks, size)

    def assign(by: Any, first: Any, which: Any) -> None:
        places.number_groups(by, first, which)

    (which,) = loops(lower, assign, [order, starts], [([length], "int64")])

    def frequency(first: te.Tensor) -> te.Tensor:
        def element(g: Any) -> Any:
            end = tirx.if_then_else(g + 1 < int64(size), first(g + 1), int64(length))
            return end - first(g)

        return compute([size], element, "frequency")

    counts = lower.te(frequency, starts)
    # The sort is stable, so that the first of a group in order is its first one at all.
    first = _taken(lower, order, starts, size)
    if not node.attr("sorted"):
        first, which, counts = _by_occurrence(lower, first, which, counts, length, size)
    return [first, which, counts], size


def _sorted_rows(
    lower: Lowering, rows: relax.Expr, length: Any, width: int, dtype: str
) -> relax.Expr:
    """The order of rows [length, width]: sorted by each column, from the last one on."""
    order: relax.Expr | None = None
    for column in reversed(range(width)):

        def keys(x: te.Tensor, *by: te.Tensor, column: int = column) -> te.Tensor:
            return compute([length], lambda j: x(by[0](j) if by else j, column), "keys")

        line = lower.te(keys, rows, *([] if order is None else [order]))
        cube = lower.reshape(line, [1, length, 1])
        found = lower.reshape(sorted_lines(lower, cube, [1, length, 1], dtype, False), [length])
        order = found if order is None else _taken(lower, order, found, length)
    if order is None:
        return lower.te(lambda x: compute([length], lambda j: j, "order"), rows)
    return order


def _by_occurrence(
    lower: Lowering,
    first: relax.Expr,
    which: relax.Expr,
    counts: relax.Expr,
    length: Any,
    size: Any,
) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    """The same in the order in which distinct elements are met first."""

    def is_first(group: te.Tensor, at: te.Tensor) -> te.Tensor:
        return compute([length], lambda i: tirx.EQ(at(group(i)), i), "is_first")

    marks = lower.te(is_first, which, first)
    met = _found(lower, marks, size)

    def rank(at: Any, group: Any, own: Any, ranked: Any) -> None:
        places.find_each(at, group, own, ranked)

    (ranked,) = loops(lower, rank, [met, which, first], [([length], "int64")])
    return met, ranked, _taken(lower, counts, _taken(lower, which, met, size), size)


def _taken(lower: Lowering, x: relax.Expr, by: relax.Expr, size: Any) -> relax.Expr:
    """x[by]"""
    return lower.te(lambda x, by: compute([size], lambda j: x(by(j)), "taken"), x, by)
