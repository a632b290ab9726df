"""Inner products of chosen pairs of features, gathered first, as `graphopt::DotInteraction`."""

from __future__ import annotations

from graphopt.ir.graph import Node, Value
from graphopt.ops.dot_interaction import DOMAIN, OP_TYPE
from graphopt.passes._concats import axis_of, concat
from graphopt.passes._shapes import ints_of, reshape_target, slice_bounds
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

p, q = var("p"), var("q")

# The op's body multiplies all features with all others: worth it for many of the pairs only. All
# pairs of two different ones are at least this share.
_LEAST_SHARE = 1 / 4

Feature = tuple[Value, int]
"""A value [n, f, d], and which of its features."""


def _features(value: Value) -> list[Feature]:
    """What the features of `value`, [n, f, d] with f known, are copies of."""
    node = value.producer
    if node is not None and node.op == "Concat" and axis_of(node) == 1:
        parts = [v for v in node.inputs if v is not None]
        return [feature for part in parts for feature in _features(part)]
    whole = [(value, k) for k in range(_count(value))]
    data = node.inputs[0] if node is not None and node.op in ("Gather", "Slice") else None
    if node is None or data is None or data.rank != 3 or not isinstance(data.tensor.dims[1], int):
        return whole
    if node.op == "Slice":
        bounds = slice_bounds(node)
        return _features(data)[slice(*bounds[1])] if bounds and set(bounds) == {1} else whole
    index = node.const(1)
    if index is None or index.ndim != 1 or node.attr("axis") % 3 != 1:
        return whole
    taken = _features(data)
    if any(not -len(taken) <= k < len(taken) for k in index):
        return whole  # for the model to fail on
    return [taken[k] for k in index]


def _count(value: Value) -> int:
    count = value.tensor.dims[1]
    assert isinstance(count, int)
    return count


@rule(op.ReduceSum(op.Mul(p, q).named("products"), ...))
def inner_products_to_interaction(
    rw: Rewriter, p: Value, q: Value, products: Value, node: Node
) -> Value | NoMatch | None:
    """ReduceSum(Gather(x, i) * Gather(x, j)) -> DotInteraction(x)"""
    if products.rank != 3 or p.shape != q.shape or p.shape != products.shape:
        return None
    if ints_of(node.input(1)) not in ([2], [-1]) or p.dtype != "float32":
        return NoMatch("it does not add up float32 products over the last axis")
    if not all(isinstance(size, int) for size in p.tensor.dims[1:]):
        return NoMatch("the number or the length of the features is not known")
    left, right = _features(p), _features(q)
    sources = list(dict.fromkeys(value for value, _ in (*left, *right)))
    counts = [_count(source) for source in sources]
    starts = {source: sum(counts[:k]) for k, source in enumerate(sources)}
    total = sum(counts)
    if total < 3 or left == right or len(left) < _LEAST_SHARE * total**2:
        return NoMatch("it takes few of the possible pairs")
    pairs = [
        (starts[a] + i) * total + starts[b] + j for (a, i), (b, j) in zip(left, right, strict=True)
    ]
    x = concat(rw, sources, 1)
    dots = rw.insert(OP_TYPE, [x], {"pairs": pairs}, domain=DOMAIN).output
    if dots.shape == node.output.shape:
        return dots
    target = reshape_target(dots.tensor, node.output.tensor)
    return (
        NoMatch("its shape is not known")
        if target is None
        else rw.op.Reshape(dots, rw.ints(*target))
    )


class FuseInnerProducts(RewritePass):
    """Computes inner products of pairs of features without gathering the features of each pair.

    The product layer of PNN. Needs float32 features [n, f, d] of known number and length, gathered,
    sliced or joined at constant positions, and a quarter of all pairs or more.
    Fidelity: reassociates.

    Before:
        (float[N,3,4] x) => (float[N,3] y)
        <int64[3] i = {0, 0, 1}, int64[3] j = {1, 2, 2}, int64[1] d = {2}> {
            p = Gather<axis=1>(x, i)
            q = Gather<axis=1>(x, j)
            m = Mul(p, q)
            y = ReduceSum<keepdims=0>(m, d)
        }

    After:
        (float[N,3,4] x) => (float[N,3] y) {
            y = graphopt.DotInteraction<pairs=[1, 2, 5]>(x)
        }
    """

    name = "fuse-inner-products"
    fidelity = Fidelity.REASSOCIATES
    rules = (inner_products_to_interaction,)
