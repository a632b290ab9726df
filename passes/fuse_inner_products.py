"""Inner products of chosen pairs of features, gathered first, as `graphopt::DotInteraction`."""

from __future__ import annotations

from graphopt.ir.graph import Node, Value
from graphopt.ops.dot_interaction import DOMAIN, OP_TYPE
from graphopt.passes._features import features, joined, starts_of
from graphopt.passes._shapes import ints_of, reshaped
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

p, q = var("p"), var("q")

# The op's body multiplies all features with all others: worth it for many of the pairs only. All
# pairs of two different ones are at least this share.
_LEAST_SHARE = 1 / 4


@rule(op.ReduceSum(op.Mul(p, q).named("products"), ...))
def inner_products_to_interaction(
    rw: Rewriter, p: Value, q: Value, products: Value, node: Node
) -> Value | NoMatch | None:
    """ReduceSum(Gather(x, i) * Gather(x, j)) -> DotInteraction(x)"""
    if products.rank != 3 or p.shape != q.shape or p.shape != products.shape:
        return None
    if ints_of(node.input(1)) not in ([2], [-1]) or p.dtype != "float32":
        return NoMatch("it does not add up float32 products over the last axis")
    count, dim = p.tensor.dims[1:]
    if not isinstance(count, int) or not isinstance(dim, int) or dim < 1:
        return NoMatch("the number or the length of the features is not known")
    left, right = features(p, dim), features(q, dim)
    sources = list(dict.fromkeys(f.source for f in (*left, *right)))
    starts = starts_of(sources, dim)
    x = joined(rw, sources, dim)
    if isinstance(x, NoMatch):
        return x
    if any(f.matrix is not None for f in (*left, *right)):
        return NoMatch("a matrix multiplies features")
    total = x.tensor.dims[1]
    assert isinstance(total, int)
    if total < 3 or left == right or len(left) < _LEAST_SHARE * total**2:
        return NoMatch("it takes few of the possible pairs")
    positions = ([starts[f.source] + f.index for f in side] for side in (left, right))
    pairs = [i * total + j for i, j in zip(*positions, strict=True)]
    dots = rw.insert(OP_TYPE, [x], {"pairs": pairs}, domain=DOMAIN).output
    return reshaped(rw, dots, node.output.shape)


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
