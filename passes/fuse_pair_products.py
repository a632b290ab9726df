"""Products of many pairs of feature vectors as `graphopt::PairProducts`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Attr, Node, Value
from graphopt.ops.pair_products import DOMAIN, OP_TYPE
from graphopt.passes._concats import axis_of, concat
from graphopt.passes._features import Feature, features, joined, leads, size_of, starts_of
from graphopt.passes._shapes import ints_of, reshaped
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, y, w = var("x"), var("y"), const("w")

Pair = tuple[Feature, Feature]

# The op's body parts all features and joins the products. That copies the features once more, which
# is little beside the products of features, or of values with features, in so many pairs each.
_LEAST_PAIRS = 3


def _pairs(value: Value, dim: int, alone: bool = False) -> list[Pair] | None:
    """The pairs that `value` has the products of; if `alone`, nothing else may read them."""
    node = value.producer
    if node is None or (alone and len(value.uses) > 1):
        return None
    first = node.inputs[0] if node.inputs else None
    if first is None or not first.shape or not value.shape or first.shape[0] != value.shape[0]:
        return None
    if node.op == "Reshape":
        return _pairs(first, dim, alone=True) if size_of(first) == size_of(value) else None
    second = node.inputs[1] if node.op == "Mul" else None
    if second is None or first.shape != second.shape or (size_of(first) or 1) % dim:
        return None
    pairs = list(zip(features(first, dim), features(second, dim), strict=True))
    turned = [(b, a) if a.matrix is None and b.matrix is not None else (a, b) for a, b in pairs]
    return None if any(b.matrix is not None for _, b in turned) else turned


def _distinct(pairs: list[Pair]) -> set[tuple[Value, int]]:
    """The features that are in `pairs`."""
    return {(f.source, f.index) for pair in pairs for f in pair}


def _refusal(pairs: list[Pair], dim: int, unrolled: bool) -> NoMatch | None:
    """Why the op would not pay for these pairs; `unrolled` if each has an op of its own."""
    sides = [f for pair in pairs for f in pair]
    weighted = {a.matrix is not None for a, _ in pairs}
    if len(weighted) > 1:
        return NoMatch("only some of the left features are multiplied with a matrix")
    if any(f.source.dtype != "float32" for f in sides):
        return NoMatch("the features are not float32")
    sources = {f.source for f in sides}
    if len(sides) < _LEAST_PAIRS * len(sources if unrolled else _distinct(pairs)):
        return NoMatch(f"its features are in less than {_LEAST_PAIRS} pairs each, on average")
    if 2 * len(sides) < sum((size_of(source) or 0) // dim for source in sources):
        return NoMatch("it takes few of the features that are there")
    return None


def _emit(
    rw: Rewriter, pairs: list[Pair], dim: int, gathered: bool, shape: tuple[Dim, ...]
) -> Value | NoMatch:
    """The products [n, len(pairs), dim], in the shape that is wanted."""
    sources = list(dict.fromkeys(f.source for pair in pairs for f in pair))
    starts = starts_of(sources, dim)
    whole = joined(rw, sources, dim)
    if isinstance(whole, NoMatch):
        return whole
    count = whole.tensor.dims[1]
    assert isinstance(count, int)
    left, right = ([starts[f.source] + f.index for f in side] for side in zip(*pairs))
    attrs: dict[str, Attr] = {"pairs": [i * count + j for i, j in zip(left, right)]}
    attrs["gathered"] = int(gathered)
    matrices, inputs = [a.matrix for a, _ in pairs if a.matrix is not None], [whole]
    if matrices:
        different = list(dict.fromkeys(matrices))
        attrs["matrices"] = [different.index(matrix) for matrix in matrices]
        arrays = [value.const if k is None else value.const[k] for value, k in different]  # type: ignore[index]
        inputs.append(rw.const(np.stack(arrays)))  # type: ignore[arg-type]
    return reshaped(rw, rw.insert(OP_TYPE, inputs, attrs, domain=DOMAIN).output, shape)


@rule(op.Mul(x, y))
def products_at_once(rw: Rewriter, node: Node) -> Value | NoMatch | None:
    """Gather(x, i) * Gather(x, j) -> PairProducts(x)"""
    dim = node.output.tensor.dims[-1] if node.output.rank else None
    if not isinstance(dim, int) or dim < 1 or node.output.rank != 3:
        return None
    pairs = _pairs(node.output, dim)
    if pairs is None or len(_distinct(pairs)) == 2 * len(pairs):
        return None  # a product like any other
    refusal = _refusal(pairs, dim, unrolled=False)
    joins = any(v is not None and v.producer and v.producer.op == "Concat" for v in node.inputs)
    gathered = not joins or pairs[0][0].matrix is not None
    return refusal or _emit(rw, pairs, dim, gathered, node.output.tensor.dims)


@rule(op.Concat(x, ...))
def joined_products(rw: Rewriter, x: Value, node: Node) -> Value | NoMatch | None:
    """Concat(a * b, a * c, b * c, z) -> Concat(PairProducts(Concat(a, b, c)), z)"""
    if not leads(node):
        return None
    parts: list[Value] = []
    refused = NoMatch("no operands that follow one another are products of features")
    for run, dim in _runs(node.operands):
        result = _joined(rw, node, run, dim) if dim and len(run) > 1 else refused
        if isinstance(result, NoMatch):
            refused = result
            parts += [value for value, _ in run]
        else:
            parts.append(result)
    if len(parts) == len(node.inputs):
        return refused
    return concat(rw, parts, node.attr("axis"))


Run = list[tuple[Value, "list[Pair] | None"]]


def _runs(operands: list[Value]) -> Iterator[tuple[Run, int | None]]:
    """Operands that follow one another and have products of vectors of one length, with these."""

    def length(value: Value) -> int | None:
        while value.producer is not None and value.producer.op == "Reshape":
            value = value.producer.operands[0]
        dim = value.tensor.dims[-1] if value.rank else None
        return dim if isinstance(dim, int) and dim > 0 else None

    found = []
    for value in operands:
        dim = length(value)
        pairs = None if dim is None else _pairs(value, dim, alone=True)
        found.append((value, pairs, None if pairs is None else dim))
    for dim, group in groupby(found, key=lambda entry: entry[2]):
        yield [(value, pairs) for value, pairs, _ in group], dim


def _joined(rw: Rewriter, node: Node, run: Run, dim: int) -> Value | NoMatch:
    """What `node` joins of the operands `run`."""
    pairs = [pair for _, found in run for pair in found or ()]
    refusal = _refusal(pairs, dim, unrolled=True)
    if refusal is not None:
        return refusal
    axis = axis_of(node)
    assert axis is not None
    sizes = [value.tensor.dims for value, _ in run]
    shape = (*sizes[0][:axis], sum(s[axis] for s in sizes), *sizes[0][axis + 1 :])
    return _emit(rw, pairs, dim, False, shape)


@rule(op.Transpose(op.ReduceSum(op.Mul(x, w).named("products"), ...).named("sums")))
def sums_to_product(
    rw: Rewriter, x: Value, w: Value, products: Value, sums: Value, node: Node
) -> Value | NoMatch:
    """Transpose(ReduceSum(x[n, 1, p, l] * w[k, p, l])) -> MatMul(x[n, p, 1, l], w[p, l, k])"""
    kernel, shape = w.const, x.tensor.dims
    assert kernel is not None and sums.producer is not None
    dims = (shape[0], *kernel.shape)
    if x.rank != 4 or kernel.ndim != 3 or products.tensor.dims != dims or shape[1] != 1:
        return NoMatch("it does not multiply vectors with a constant matrix for each")
    if ints_of(sums.producer.input(1)) not in ([3], [-1]) or sums.rank != 3:
        return NoMatch("it does not add up over the last axis")
    if list(node.attr("perm") or ()) != [0, 2, 1]:
        return NoMatch("what it adds up is not turned")
    rows = reshaped(rw, x, (shape[0], shape[2], 1, shape[3]))
    if isinstance(rows, NoMatch):
        return rows
    matrices = rw.const(np.ascontiguousarray(kernel.transpose(1, 2, 0)))
    return reshaped(rw, rw.op.MatMul(rows, matrices), node.output.shape)


class FusePairProducts(RewritePass):
    """Multiplies feature vectors, or their products with a matrix, pair by pair in one op.

    The bilinear interaction of FiBiNET, the outer products of PNN, the products of AFM and FFM.
    Needs float32 features in three pairs each or more, gathered, sliced, parted or joined at
    constant positions, and constant matrices, if any. What exporters write out pair by pair, the
    compiled kernel does at once. Fidelity: reassociates.

    Before:
        (float[N,1,2] a, float[N,1,2] b, float[N,1,2] c, float[N,1,2] d) => (float[N,6,2] y) {
            p = Concat<axis=1>(a, a, a, b, b, c)
            q = Concat<axis=1>(b, c, d, c, d, d)
            y = Mul(p, q)
        }

    After:
        (float[N,1,2] a, float[N,1,2] b, float[N,1,2] c, float[N,1,2] d) => (float[N,6,2] y) {
            x = Concat<axis=1>(a, b, c, d)
            y = graphopt.PairProducts<gathered=0, pairs=[1, 2, 3, 6, 7, 11]>(x)
        }
    """

    name = "fuse-pair-products"
    fidelity = Fidelity.REASSOCIATES
    rules = (sums_to_product, products_at_once, joined_products)
