"""Attention, however its heads are laid out, as `graphopt::Attention`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graphopt.ir.dims import Dim, exact_div
from graphopt.ir.graph import Node, Value
from graphopt.ops.attention import DOMAIN, OP_TYPE, Attention
from graphopt.passes._attention import Heads, Scores, heads_of, rows_of, scores_of, shares_of
from graphopt.passes._shapes import reshaped
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.rewrite.pattern import Pattern

values, bias = var("values"), var("bias")
shares, none = var("shares"), const("none")


@rule(op.MatMul(op.Softmax(var("scores")).named("shares"), values))
def products_to_attention(
    rw: Rewriter, shares: Value, values: Value, node: Node
) -> Value | NoMatch:
    """MatMul(Softmax(MatMul(q, Transpose(k)) * scale + bias), v) -> Attention(q, k, v, bias)"""
    return _of_softmax(rw, shares, values, node, guarded=False)


@rule(op.MatMul(op.Where(op.IsNaN(shares), none, shares), values))
def guarded_to_attention(
    rw: Rewriter, shares: Value, none: Value, values: Value, node: Node
) -> Value | NoMatch:
    """MatMul(Where(IsNaN(shares), 0, shares), v) of shares = Softmax(…) -> Attention, guarded

    As PyTorch writes attention with a mask of booleans.
    """
    assert none.const is not None
    softmax = shares.producer
    if softmax is None or softmax.op != "Softmax" or len(shares.uses) > 2:
        return NoMatch("what it guards is no softmax, or is also read elsewhere")
    if none.const.size != 1 or none.const.item() != 0:
        return NoMatch("NaN becomes another number than 0")
    return _of_softmax(rw, shares, values, node, guarded=True)


def _of_softmax(
    rw: Rewriter, shares: Value, values: Value, node: Node, *, guarded: bool
) -> Value | NoMatch:
    assert shares.producer is not None and shares.producer.inputs[0] is not None
    if shares.rank and shares.producer.attr("axis") % shares.rank != shares.rank - 1:
        return NoMatch("softmax goes along another axis than that of the keys")
    found = scores_of(shares.producer.inputs[0])
    return _fused(rw, found, values, node, Attention(1, 1, 1.0, guarded=guarded))


@rule(op.MatMul(shares, values))
def pointwise_to_attention(
    rw: Rewriter, shares: Value, values: Value, node: Node
) -> Value | NoMatch | None:
    """MatMul(Silu(MatMul(q, Transpose(k)) + bias) * mask, v) -> Attention<activation="silu">

    As in HSTU. The mask may also divide by the number of keys. Relu and Sigmoid as well.
    """
    if values.const is not None or shares.rank not in (3, 4):
        return None  # a layer
    activated = shares_of(shares)
    if activated is None:
        return None
    if len(shares.uses) > 1:
        return NoMatch("its shares are also read elsewhere")
    found = scores_of(activated.scores, activated.readers)
    what = Attention(1, 1, 1.0, activation=activated.activation)
    return _fused(rw, found, values, node, what, activated.factor(rw))


@rule(op.Attention(var("q"), var("k"), values, ...))
def standard_to_products(
    rw: Rewriter, q: Value, k: Value, values: Value, node: Node
) -> Value | NoMatch:
    """Attention (of ONNX) -> MatMul(Softmax(MatMul(q, Transpose(k)) * scale + mask), v)"""
    if any(value is not None for value in node.inputs[4:]) or len(node.outputs) > 1:
        return NoMatch("it keeps keys and values of earlier calls, or tells its scores")
    if {q.rank, k.rank, values.rank} != {4} or values.dtype != "float32":
        return NoMatch("its operands are not float32 of rank 4")
    width = q.tensor.dims[3]
    if q.tensor.dims[1] != k.tensor.dims[1] or not isinstance(width, int):
        return NoMatch("its queries share heads of keys, or their width is not known")
    if node.attr("softcap") or node.attr("softmax_precision", 1) != 1:
        return NoMatch("it bends its scores, or is rounded in between")
    mask = _standard_mask(node, q.tensor.dims[2], k.tensor.dims[2])
    if isinstance(mask, str):
        return NoMatch(mask)
    scale = np.float32(node.attr("scale") or width**-0.5)
    scores = rw.op.Mul(rw.op.MatMul(q, rw.op.Transpose(k, perm=[0, 1, 3, 2])), rw.const(scale))
    if mask is not None:
        scores = rw.op.Add(scores, rw.const(mask))
    return rw.op.MatMul(rw.op.Softmax(scores, axis=-1), values)


def _standard_mask(node: Node, rows: Dim, columns: Dim) -> np.ndarray | str | None:
    """What ONNX's Attention adds to its scores; in each row it leaves some key to be seen.

    Versions of ONNX differ in what no key gives.
    """
    mask, added = node.input(3), None
    if mask is not None:
        if mask.const is None:
            return "whether its mask hides all keys from a query is known only at run time"
        hides = mask.const.dtype == np.bool_
        added = np.where(mask.const, 0, -np.inf) if hides else mask.const
        if added.shape[-1] != columns:
            return "its mask is not as long as its keys"
    if node.attr("is_causal"):
        if not isinstance(rows, int) or not isinstance(columns, int):
            return "how many keys come before a query is known only at run time"
        later = np.where(np.tri(rows, columns, dtype=bool), 0, -np.inf)
        added = later if added is None else added + later
    if added is None:
        return None
    if not np.isfinite(added).any(-1).all():
        return "its mask hides all keys from a query"
    return added.astype(np.float32)


def _fused(
    rw: Rewriter,
    found: Scores | str,
    values: Value,
    node: Node,
    what: Attention,
    factor: Value | None = None,
) -> Value | NoMatch:
    """`what` of these scores and values, which it has no heads of yet."""
    rank = values.rank
    if isinstance(found, str):
        return NoMatch(found)
    if rank not in (3, 4) or {found.q.rank, found.k.rank} != {rank} or values.dtype != "float32":
        return NoMatch("its operands are not float32 of rank 3 or 4")
    parts = _heads_of(found.q, found.k, values)
    if parts is None:
        return NoMatch("its heads are not columns of rows")
    (query, key, value), order = parts
    if not (query.heads, query.dim) == (key.heads, key.dim) == (value.heads, value.dim):
        return NoMatch("queries, keys and values differ in their heads")
    if not query.batch == key.batch == value.batch:
        return NoMatch("queries, keys and values differ in their batch")
    if value.scale != 1.0:
        return NoMatch("its values are scaled")
    added = found.bias
    if found.mask is not None:
        mask = found.mask.as_bias(rw)
        added = mask if added is None else rw.op.Add(mask, added)
    others = [_beside_scores(rw, side, order, query.heads) for side in (added, factor)]
    attention = replace(
        what,
        heads=query.heads,
        dim=query.dim,
        scale=found.scale * query.scale * key.scale,
        columns=(query.first, key.first, value.first),
    )
    inputs: list[Value | None] = [side.batch_first(rw) for side in (query, key, value)]
    for other in others:
        if isinstance(other, NoMatch):
            return other
        inputs.append(other)
    while inputs[-1] is None:
        inputs.pop()
    result = rw.insert(OP_TYPE, inputs, attention.attrs, domain=DOMAIN).output
    return _as_before(rw, result, attention, node.output, order)


def _heads_of(
    q: Value, k: Value, v: Value
) -> tuple[tuple[Heads, Heads, Heads], tuple[int, ...]] | None:
    """The heads of queries, turned keys and values, and which axes of q are [b, heads?, t, dim]."""
    rank = len(q.tensor.dims)
    for order in ((0, 1, 2, 3), (1, 0, 2, 3)) if rank == 4 else ((0, 1, 2),):
        query, value = heads_of(q, order), heads_of(v, order)
        key = heads_of(k, (*order[:-2], rank - 1, rank - 2))
        if query is not None and key is not None and value is not None:
            return (query, key, value), order
    return None


def _beside_scores(
    rw: Rewriter, value: Value | None, order: tuple[int, ...], heads: int
) -> Value | NoMatch | None:
    """What is added to scores, or multiplied, as the op wants it: broadcast to [b, heads, t, s]."""
    dims = () if value is None else value.tensor.dims
    if value is None or len(dims) < 3 or set(dims[:-2]) == {1} or order == (0, 1, 2, 3):
        return value
    if len(dims) == 4:
        return rw.op.Transpose(value, perm=order)
    if len(order) == 4 or heads == 1:
        return rw.op.Unsqueeze(value, rw.ints(1))
    samples = exact_div(dims[0], heads)
    if samples is None:
        return NoMatch("its bias is neither one for each head nor one for all")
    return reshaped(rw, value, (samples, heads, *dims[1:]))


def _as_before(
    rw: Rewriter, rows: Value, attention: Attention, old: Value, order: tuple[int, ...]
) -> Value | NoMatch:
    """[b, t, heads * dim] as it was: [b, heads, t, dim], turned, or with heads within the batch."""
    if attention.heads > 1 or old.rank == 4:
        apart = reshaped(rw, rows, (*rows.tensor.dims[:2], attention.heads, attention.dim))
        if isinstance(apart, NoMatch):
            return apart
        first, second = (2, 0) if order[0] == 1 else (0, 2)
        rows = rw.op.Transpose(apart, perm=[first, second, 1, 3])
    if rows.rank != old.rank:
        return reshaped(rw, rows, old.shape)
    return rows if rows.type == old.type else NoMatch("its batch and that of its bias differ")


@rule(Pattern(OP_TYPE, (var("q"), var("k"), ...), domain=DOMAIN))
def rows_in_place(rw: Rewriter, node: Node) -> Value | None:
    """Attention(Slice(x), k, v) -> Attention(x, k, v), the columns of x being told"""
    attention = Attention.of(node)
    inputs, columns = list(node.inputs), list(attention.columns)
    for slot, value in enumerate(node.inputs[:3]):
        assert value is not None
        found = rows_of(value)
        if found is not None and found.rows.tensor.dims[2] != value.tensor.dims[2]:
            inputs[slot] = found.batch_first(rw)
            columns[slot] += found.first
    if inputs[:3] == list(node.inputs[:3]):
        return None
    attrs = replace(attention, columns=(columns[0], columns[1], columns[2])).attrs
    return rw.insert(OP_TYPE, inputs, attrs, domain=DOMAIN).output


@rule(Pattern(OP_TYPE, (var("q"), var("k"), var("v"), op.Expand(bias, ...), ...), domain=DOMAIN))
def bias_unexpanded(rw: Rewriter, node: Node, bias: Value) -> Value | NoMatch:
    """Attention(q, k, v, Expand(b)) -> Attention(q, k, v, b), which broadcasts it"""
    wide = node.inputs[3]
    assert wide is not None
    if bias.rank != 4 or wide.rank != 4:
        return NoMatch("the expansion adds axes")
    inputs = [*node.inputs[:3], bias, *node.inputs[4:]]
    return rw.insert(OP_TYPE, inputs, Attention.of(node).attrs, domain=DOMAIN).output


class FuseAttention(RewritePass):
    """Replaces scaled dot-product attention by `graphopt::Attention`.

    Needs a softmax over the last axis between two products, or Silu, Sigmoid or Relu and then any
    factors (HSTU), and a known number of heads. Heads may be split off in any way that leaves each
    of them columns of rows: they are then read where they are, and the reshapes and transposes
    around them are not needed. Queries, keys and values may be columns of one product. One bias may
    be added to the scores, and a mask may replace them by a number of -1e9 or less; shares of a
    softmax that are NaN then may be replaced by 0. ONNX's own `Attention` too
    may be replaced if its mask is constant. Fidelity: reassociates.

    Before:
        (float[N,5,8] x, float[N,5,8] z, float[N,1,1,5] mask) => (float[N,5,8] y)
        <int64[4] heads = {-1, 5, 2, 4}, float two = {2}, int64[3] rows = {-1, 5, 8}> {
            q1 = Reshape(x, heads)
            q2 = Transpose<perm=[0, 2, 1, 3]>(q1)
            k1 = Reshape(z, heads)
            k2 = Transpose<perm=[0, 2, 3, 1]>(k1)
            v2 = Transpose<perm=[0, 2, 1, 3]>(k1)
            p = MatMul(q2, k2)
            d = Div(p, two)
            s = Add(d, mask)
            a = Softmax(s)
            o = MatMul(a, v2)
            t = Transpose<perm=[0, 2, 1, 3]>(o)
            y = Reshape(t, rows)
        }

    After:
        (float[N,5,8] x, float[N,5,8] z, float[N,1,1,5] mask) => (float[N,5,8] y)
        <int64[4] heads = {-1, 5, 2, 4}, int64[3] rows = {-1, 5, 8}> {
            a = graphopt.Attention<columns=[0, 0, 0], dim=4, heads=2, scale=0.5>(x, z, z, mask)
            r = Reshape(a, heads)
            o = Transpose<perm=[0, 2, 1, 3]>(r)
            t = Transpose<perm=[0, 2, 1, 3]>(o)
            y = Reshape(t, rows)
        }
    """

    name = "fuse-attention"
    fidelity = Fidelity.REASSOCIATES
    rules = (
        standard_to_products,
        products_to_attention,
        guarded_to_attention,
        pointwise_to_attention,
        rows_in_place,
        bias_unexpanded,
    )
