"""Sums of quotients with one divisor are divided once."""

from __future__ import annotations

from graphopt.ir.graph import Node, Value
from graphopt.passes._shapes import ints_of, reshaped
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

x, y, divisor = var("x"), var("y"), var("divisor")


@rule(op.ReduceSum(op.Mul(op.Div(x, divisor).named("quotient"), y).named("products"), ...))
def sum_then_divide(
    rw: Rewriter, x: Value, divisor: Value, y: Value, quotient: Value, products: Value, node: Node
) -> Value | NoMatch | None:
    """ReduceSum(x / d * y) -> ReduceSum(x * y) / d, where d is the same for all that is added up"""
    axes = ints_of(node.input(1))
    if not products.rank or not axes or divisor.const is not None:
        return None  # a constant is folded elsewhere
    if not divisor.rank == x.rank == products.rank or x.shape != quotient.shape:
        return NoMatch("the divisor is of another rank, or larger than what it divides")
    if any(divisor.tensor.dims[axis] != 1 for axis in axes):
        return NoMatch("the divisor differs among what is added up")
    sizes = [products.tensor.dims[axis] for axis in axes]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return NoMatch("a sum of nothing is 0, whatever the divisor; there may be nothing to add")
    if products.dtype not in ("float32", "float64"):
        return NoMatch("it adds up integers or short floats")
    sums = rw.op.ReduceSum(rw.op.Mul(x, y), node.inputs[1], keepdims=1)
    return reshaped(rw, rw.op.Div(sums, divisor), node.output.shape)


@rule(op.MatMul(x, y))
def row_times_column(rw: Rewriter, x: Value, y: Value, node: Node) -> Value | NoMatch | None:
    """MatMul(Reshape(a, [N,1,D]), Reshape(b, [N,D,1])) -> ReduceSum(a * b)"""
    if x.rank != 3 or y.rank != 3 or x.tensor.dims[1] != 1 or y.tensor.dims[2] != 1:
        return None
    left, right = _row(x, 1), _row(y, 2)
    if left is None or right is None or left.shape != right.shape:
        return NoMatch("its operands are not two vectors for each sample, reshaped")
    sums = rw.op.ReduceSum(rw.op.Mul(left, right), rw.ints(1), keepdims=1)
    return reshaped(rw, sums, node.output.shape)


def _row(value: Value, axis: int) -> Value | None:
    """What `value` is with an axis of size 1 inserted at `axis`."""
    node = value.producer
    source = node.inputs[0] if node is not None and node.op == "Reshape" else None
    shape = value.tensor.dims[:axis] + value.tensor.dims[axis + 1 :]
    return source if source is not None and source.shape == shape else None


class SinkDivisions(RewritePass):
    """Divides an inner product, instead of each element of the vectors that are multiplied.

    Cosines of towers normalize both vectors first. Needs a divisor that is the same for all that is
    added up, a known number of summands (a sum of none is 0 where their divisor is 0 too), and
    quotients that nobody else reads. The product of a row and a column for each sample becomes a
    sum of products. Fidelity: reassociates.

    Before:
        (float[N,4] x, float[N,4] z, float[N,1] d) => (float[N] y) <int64[1] last = {1}> {
            q = Div(x, d)
            p = Mul(q, z)
            y = ReduceSum<keepdims=0>(p, last)
        }

    After:
        (float[N,4] x, float[N,4] z, float[N,1] d) => (float[N] y)
        <int64[1] last = {1}, int64[1] flat = {-1}> {
            p = Mul(x, z)
            s = ReduceSum(p, last)
            q = Div(s, d)
            y = Reshape(q, flat)
        }
    """

    name = "sink-divisions"
    fidelity = Fidelity.REASSOCIATES
    rules = (sum_then_divide, row_times_column)
