"""Products of chosen pairs of feature vectors as `graphopt::DotInteraction`."""

from __future__ import annotations

from typing import Any

from graphopt.ir.dims import product
from graphopt.ir.graph import Node, Value
from graphopt.ops.dot_interaction import DOMAIN, OP_TYPE
from graphopt.passes._concats import axis_of, concat
from graphopt.passes._selections import Selection, selection
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.rewrite.pattern import Pattern

x, head, index = var("x"), var("head"), const("index")
dots = Pattern(OP_TYPE, (x,), domain=DOMAIN, name="dots")


def _factors(products: Value) -> Value | None:
    """What was multiplied with its own transpose to give `products`, if they are that."""
    node = products.producer
    if node is None or node.op != "MatMul" or products.rank != 3:
        return None
    a, b = node.inputs[:2]
    for plain, turned in ((a, b), (b, a)):
        if plain is None or turned is None or turned.producer is None:
            continue
        swap = turned.producer
        if swap.op == "Transpose" and swap.attr("perm") == [0, 2, 1] and swap.inputs[0] is plain:
            return plain if plain is a else turned
    return None


def _outside(found: Selection, root: Node) -> Value | None:
    """A value on the way from the products to `root` that something else reads too."""
    covered = found.nodes | {found.source.producer}
    for node in covered - {root}:
        for value in node.outputs if node is not None else ():
            if any(use.user not in covered for use in value.uses):
                return value
    return None


@rule(
    *(make(x) for make in (op.Transpose, op.Flatten)),
    *(make(x, index) for make in (op.Gather, op.GatherND)),
    *(make(x, ...) for make in (op.Reshape, op.Slice, op.GatherElements, op.Concat)),
)
def products_to_interaction(rw: Rewriter, node: Node) -> Value | NoMatch | None:
    """Gather(Reshape(MatMul(x, Transpose(x))), c) -> DotInteraction(x)"""
    found = selection(node.output, lambda value: _factors(value) is not None)
    features = None if found is None else _factors(found.source)
    if found is None or features is None or found.batch != 0 or found.positions.ndim != 1:
        return None
    if len(found.positions) == product(found.source.tensor.dims[1:]):
        return NoMatch("it takes all of the products")
    if features.dtype != "float32":
        return NoMatch("the features are not float32")
    if not isinstance(features.tensor.dims[2], int):
        return NoMatch("the length of the features is not known")
    also = _outside(found, node)
    if also is not None:
        return NoMatch(f"{also.name!r} on the way is also read elsewhere")
    return _interaction(rw, [features], found.positions.tolist())


def _interaction(rw: Rewriter, inputs: list[Value], pairs: Any) -> Value:
    return rw.insert(OP_TYPE, inputs, {"pairs": list(pairs)}, domain=DOMAIN).output


@rule(op.Concat(head, dots, ...))
def head_into_interaction(rw: Rewriter, head: Value, x: Value, dots: Value, node: Node) -> Any:
    """Concat(h, DotInteraction(x), …) -> Concat(DotInteraction(x, h), …)"""
    assert dots.producer is not None
    if axis_of(node) != 1 or not isinstance(head.tensor.dims[1], int):
        return NoMatch("it does not put columns of known number before the products")
    joined = _interaction(rw, [x, head], dots.producer.attrs["pairs"])
    return concat(rw, [joined, *node.operands[2:]], 1)


class FuseDotInteraction(RewritePass):
    """Computes chosen products of pairs of feature vectors in one op, beside other columns.

    Needs float32 features and constant positions, by whatever ops they are chosen: gathers, slices,
    transposes, reshapes and concatenations are followed element by element. What is not chosen, the
    compiled kernel does not compute. Fidelity: reassociates.

    Before:
        (float[N,3,4] x, float[N,2] h) => (float[N,5] y)
        <int64[3] chosen = {3, 6, 7}, int64[2] s = {-1, 9}> {
            t = Transpose<perm=[0, 2, 1]>(x)
            p = MatMul(x, t)
            f = Reshape(p, s)
            g = Gather<axis=1>(f, chosen)
            y = Concat<axis=1>(h, g)
        }

    After:
        (float[N,3,4] x, float[N,2] h) => (float[N,5] y) {
            y = graphopt.DotInteraction<pairs=[3, 6, 7]>(x, h)
        }
    """

    name = "fuse-dot-interaction"
    fidelity = Fidelity.REASSOCIATES
    rules = (products_to_interaction, head_into_interaction)
