"""Rows of all fields that are added up as they are looked up, as in the linear terms of FM."""

from __future__ import annotations

from graphopt.ir.dims import product
from graphopt.ir.graph import Node, Value
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.rewrite.pattern import Pattern
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.lookup_parts import OP_TYPE, Part

_JOINED = Pattern(OP_TYPE, (var("first"), ...), domain=DOMAIN, name="joined")


@rule(op.ReduceSum(_JOINED, const("axes")))
def sum_of_lookups(rw: Rewriter, node: Node, joined: Value, axes: Value) -> Value | NoMatch:
    """ReduceSum(LookupConcat(t, i, u, j)) -> LookupConcat(t, i, u, j; summed)

    `summed` is how many elements the rows have that are added up, one after the other.
    """
    before = joined.producer
    assert before is not None and axes.const is not None
    width = _width_of_sum(joined, {int(axis) for axis in axes.const.reshape(-1)}, before)
    if width is None:
        return NoMatch("it does not add up the rows of each sample that are joined")
    if "summed" in before.attrs or not all(
        _is_made_of(part, width) for part in before.attrs["parts"]
    ):
        return NoMatch("what is joined is made of other rows than those that are added up")
    attrs = {**before.attrs, "shape": node.output.tensor.dims, "summed": width}
    origin = tuple(dict.fromkeys((*before.origin, *node.origin)))
    return rw.insert(OP_TYPE, before.inputs, attrs, domain=DOMAIN, origin=origin).output


def _width_of_sum(joined: Value, axes: set[int], node: Node) -> int | None:
    """Elements that remain of a row of `node`, if its other axes but not those outside go."""
    dims = joined.tensor.dims
    first = next(k for k in range(len(dims) + 1) if product(dims[:k]) == node.attrs["rows"])
    inner = [k for k in range(first, len(dims)) if dims[k] != 1]
    reduced = sorted(k for k in {axis % len(dims) for axis in axes} if dims[k] != 1)
    if not reduced or reduced != inner[: len(reduced)]:
        return None
    width = product(dims[k] for k in inner[len(reduced) :])
    return width if isinstance(width, int) else None


def _is_made_of(part: Part, width: int) -> bool:
    """True if a part is rows of `width` elements, which are added at most.

    Vectors of pooled rows overlap at the end, unless whole ones make up the row.
    """
    whole = part.pool is None or width & (width - 1) == 0
    rows = all(term.dim == width for term in part.terms)
    return whole and rows and part.width % width == 0 and part.combined != "mul"
