"""Reductions that keep their axes, where a reshape gives them back."""

from __future__ import annotations

from graphopt.ir.graph import Node, Value
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

x, reduced = var("x"), var("reduced")

_REDUCTIONS = (
    op.ReduceL1,
    op.ReduceL2,
    op.ReduceMax,
    op.ReduceMean,
    op.ReduceMin,
    op.ReduceProd,
    op.ReduceSum,
)


@rule(*(op.Reshape(reduce(x, ...).named("reduced"), ...) for reduce in _REDUCTIONS))
def reshape_of_reduction(rw: Rewriter, reduced: Value, node: Node) -> Value | NoMatch:
    """Reshape(ReduceSum<keepdims=0>(x)) -> ReduceSum<keepdims=1>(x)"""
    reduction = reduced.producer
    assert reduction is not None
    if reduction.attr("keepdims") != 0:
        return NoMatch("it keeps its axes already")
    attrs = {**reduction.attrs, "keepdims": 1}
    kept = rw.insert(reduction.op_type, reduction.inputs, attrs).output
    return kept if kept.type == node.output.type else NoMatch("it is reshaped to something else")


class KeepReducedAxes(RewritePass):
    """Lets reductions keep their axes with size 1, where a Reshape would put them back.

    Needs nothing. Fidelity: exact.

    Before:
        (float[N,4] x) => (float[N,4] y) <int64[1] axis = {1}, int64[2] column = {-1, 1}> {
            m = ReduceMean<keepdims=0>(x, axis)
            c = Reshape(m, column)
            y = Sub(x, c)
        }

    After:
        (float[N,4] x) => (float[N,4] y) <int64[1] axis = {1}> {
            m = ReduceMean<keepdims=1>(x, axis)
            y = Sub(x, m)
        }
    """

    name = "keep-reduced-axes"
    fidelity = Fidelity.EXACT
    rules = (reshape_of_reduction,)
