"""Square of sum less sum of squares as `graphopt::BiInteraction`."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.ops.bi_interaction import DOMAIN, OP_TYPE
from graphopt.passes._shapes import ints_of, reshaped
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.rewrite.pattern import Pattern

x, c = var("x"), const("c")
pairs = Pattern(OP_TYPE, (x,), domain=DOMAIN, name="pairs")


def _reduced_axes(node: Node) -> list[int] | None:
    """The axes that a Reduce op takes, from the front; None if they are not known."""
    data, axes = node.inputs[0], ints_of(node.input(1))
    if data is None or data.rank is None or not axes:
        return None
    return sorted(axis % data.rank for axis in axes)


def _emit(rw: Rewriter, features: Value, scale: float, pooled: bool) -> Value:
    attrs = {"scale": float(np.float32(scale)), "pooled": int(pooled)}
    return rw.insert(OP_TYPE, [features], attrs, domain=DOMAIN).output


def _squared(value: Value) -> Value | None:
    """What `value` is the square of, if it is one: Pow(x, 2) or Mul(x, x)."""
    node = value.producer
    if node is None or node.op not in ("Pow", "Mul"):
        return None
    base, other = node.inputs[:2]
    if node.op == "Mul":
        return base if base is other else None
    exponent = node.const(1)
    return base if exponent is not None and exponent.size == 1 and exponent.item() == 2 else None


def _sum_of(value: Value, op_type: str = "ReduceSum") -> Value | None:
    """What `value` is the sum over axis 1 of, if that has rank 3."""
    node = value.producer
    if node is None or node.op != op_type or _reduced_axes(node) != [1]:
        return None
    data = node.inputs[0]
    return data if data is not None and data.rank == 3 else None


def _features(first: Value, second: Value) -> Value | None:
    """x where `first` is the square of its sum and `second` the sum of its squares."""
    total, squares = _squared(first), _sum_of(second)
    x = None if total is None else _sum_of(total)
    other = _sum_of(second, "ReduceSumSquare") if squares is None else _squared(squares)
    return x if x is not None and x is other else None


def _between(value: Value, end: Value) -> list[Value]:
    """The values from `value` back to `end`, which is not among them."""
    found = []
    while value is not end:
        found.append(value)
        assert value.producer is not None and value.producer.inputs[0] is not None
        value = value.producer.inputs[0]
    return found


@rule(op.Sub(var("a"), var("b")))
def squares_to_interaction(rw: Rewriter, a: Value, b: Value, node: Node) -> Value | NoMatch | None:
    """ReduceSum(x)^2 - ReduceSum(x^2) -> BiInteraction(x)"""
    x = _features(a, b)
    if x is None:
        return None
    inside = [*_between(a, x), *_between(b, x)]
    shared = [v for v in inside if len(v.users) > 1 or v.is_graph_output]
    if x.dtype != "float32":
        return NoMatch("the features are not float32")
    if shared:
        return NoMatch(f"{shared[0].name!r} on the way is also read elsewhere")
    return reshaped(rw, _emit(rw, x, 1.0, pooled=False), node.output.shape)


@rule(op.ReduceSum(pairs, ...), op.ReduceSum(op.Reshape(pairs, ...).named("shaped"), ...))
def sum_into_interaction(rw: Rewriter, x: Value, pairs: Value, node: Node) -> Value | NoMatch:
    """ReduceSum(BiInteraction(x), 1) -> BiInteraction<pooled=1>(x)"""
    data, axes, made = node.inputs[0], _reduced_axes(node), pairs.producer
    assert data is not None and data.rank is not None and made is not None
    if (
        made.attrs["pooled"]
        or axes != [data.rank - 1]
        or data.tensor.dims[-1] != pairs.tensor.dims[-1]
    ):
        return NoMatch("it does not add up what belongs to one sample")
    return reshaped(rw, _emit(rw, x, made.attrs["scale"], pooled=True), node.output.shape)


@rule(op.Mul(pairs, c), op.Mul(op.Reshape(pairs, ...).named("shaped"), c))
def scale_into_interaction(
    rw: Rewriter, x: Value, pairs: Value, c: Value, node: Node
) -> Value | NoMatch:
    """BiInteraction(x) * c -> BiInteraction<scale=c>(x)"""
    assert c.const is not None and pairs.producer is not None
    data = node.inputs[0] if node.inputs[1] is c else node.inputs[1]
    assert data is not None
    if c.const.size != 1 or data.type != node.output.type:
        return NoMatch("the factor is not one number")
    made = pairs.producer.attrs
    scaled = _emit(rw, x, made["scale"] * float(c.const.item()), bool(made["pooled"]))
    return reshaped(rw, scaled, node.output.shape)


class FuseBiInteraction(RewritePass):
    """Computes the square of a sum minus the sum of squares over features in one op.

    The second-order term of factorization machines, and the bi-interaction pooling of neural ones.
    Needs float32 features [n, f, d], added up over f; a sum over d and a factor are taken in.
    Fidelity: reassociates.

    Before:
        (float[N,3,4] x) => (float[N,1] y)
        <int64[1] f = {1}, int64[1] d = {2}, float half = {0.5}, float two = {2}> {
            s = ReduceSum(x, f)
            a = Pow(s, two)
            m = Mul(x, x)
            b = ReduceSum(m, f)
            e = Sub(a, b)
            t = ReduceSum<keepdims=0>(e, d)
            y = Mul(t, half)
        }

    After:
        (float[N,3,4] x) => (float[N,1] y) {
            y = graphopt.BiInteraction<pooled=1, scale=0.5>(x)
        }
    """

    name = "fuse-bi-interaction"
    fidelity = Fidelity.REASSOCIATES
    rules = (squares_to_interaction, sum_into_interaction, scale_into_interaction)
