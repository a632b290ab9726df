"""Attention, however its heads are laid out, as `graphopt::Attention`."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.ir.types import TensorType
from graphopt.ops.attention import DOMAIN, OP_TYPE, Attention
from graphopt.passes._shapes import reshape_target
from graphopt.passes._views import Atom, View, factor_of, views_of, whole
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

scores, values = var("scores"), var("values")


@dataclass(frozen=True)
class _Heads:
    """Columns of all heads in `rows`, [batch, time, …], or [time, batch, …] if `turned`."""

    rows: Value
    turned: bool
    first: int
    heads: int
    dim: int
    scale: float

    def batch_first(self, rw: Rewriter) -> Value:
        return rw.op.Transpose(self.rows, perm=[1, 0, 2]) if self.turned else self.rows


def _heads(value: Value, perm: tuple[int, ...]) -> _Heads | None:
    """`value`, whose axes in the order `perm` are [batch, heads, time, dim] or without heads."""
    found = [_heads_of(view.permuted(perm), value, perm) for view in views_of(value)]
    return next((heads for heads in reversed(found) if heads is not None), None)


def _heads_of(view: View, value: Value, perm: tuple[int, ...]) -> _Heads | None:
    dims = [value.tensor.dims[axis] for axis in perm]
    dim, time = dims[-1], dims[-2]
    if view.source.rank != 3 or not isinstance(dim, int) or any(view.starts[:2]):
        return None
    batch = view.axes[0]
    groups = view.axes[1] if len(dims) == 4 else tuple(a for a in batch if a.axis == 2)
    if len(dims) == 3:
        batch = batch[: len(batch) - len(groups)]
    count = groups[0].extent if groups else 1
    if not isinstance(count, int) or view.axes[-1] != whole(2, dim):
        return None
    if groups != ((Atom(2, count, dim),) if count > 1 else ()):
        return None
    for turned in (False, True):
        order: list[Dim] = list(view.source.tensor.dims[:2])
        first, second = (1, 0) if turned else (0, 1)
        loops = (whole(first, order[first]), whole(second, order[second]))
        if (batch, view.axes[-2]) == loops and order[second] == time:
            return _Heads(view.source, turned, view.starts[2], count, dim, view.scale)
    return None


@dataclass(frozen=True)
class _Scores:
    """`q k * scale + bias`, k being turned already."""

    q: Value
    k: Value
    scale: float
    bias: Value | None


def _scores(value: Value) -> _Scores | str:
    """`value` as scores of queries and keys, or why it is not; each part read only here."""
    bias, scale, node = None, 1.0, value.producer
    while node is not None and node.op in ("Add", "Mul", "Div"):
        if len(node.output.uses) > 1:
            return "its scores are also read elsewhere"
        scaled = factor_of(node)
        if scaled is not None:
            value, scale = scaled[0], scale * scaled[1]
        elif node.op == "Add" and bias is None and scale == 1.0:
            a, b = node.inputs
            assert a is not None and b is not None
            value, bias = (b, a) if _is_scores(b) else (a, b)
            if value.type != node.output.type:
                return "the bias is larger than the scores"
        else:
            return "its scores are more than scaled and added to once"
        node = value.producer
    if node is None or node.op != "MatMul" or len(value.uses) > 1:
        return "its scores are no product that is read only there"
    q, k = node.inputs
    assert q is not None and k is not None
    return _Scores(q, k, scale, bias)


def _is_scores(value: Value) -> bool:
    node = value.producer
    return (
        node is not None
        and node.op in ("MatMul", "Mul", "Div")
        and not isinstance(_scores(value), str)
    )


@rule(op.MatMul(op.Softmax(scores).named("shares"), values))
def products_to_attention(
    rw: Rewriter, scores: Value, shares: Value, values: Value, node: Node
) -> Value | NoMatch | None:
    """MatMul(Softmax(MatMul(q, Transpose(k)) * scale + bias), v) -> Attention(q, k, v, bias)"""
    found, rank = _scores(scores), values.rank
    if isinstance(found, str):
        return NoMatch(found)
    if rank not in (3, 4) or {found.q.rank, found.k.rank} != {rank} or values.dtype != "float32":
        return NoMatch("its operands are not float32 of rank 3 or 4")
    assert rank is not None and shares.producer is not None
    if shares.producer.attr("axis") % rank != rank - 1:
        return NoMatch("softmax goes along another axis than that of the keys")
    plain = tuple(range(rank))
    query, value = _heads(found.q, plain), _heads(values, plain)
    key = _heads(found.k, (*plain[:-2], rank - 1, rank - 2))
    if query is None or key is None or value is None:
        return NoMatch("its heads are not columns of rows")
    if not (query.heads, query.dim) == (key.heads, key.dim) == (value.heads, value.dim):
        return NoMatch("queries, keys and values differ in their heads")
    bias = _bias(rw, found.bias, rank, query.heads)
    if isinstance(bias, NoMatch):
        return bias
    scale = found.scale * query.scale * key.scale
    attention = Attention(query.heads, query.dim, scale, (query.first, key.first, value.first))
    inputs = [side.batch_first(rw) for side in (query, key, value)]
    if bias is not None:
        inputs.append(bias)
    result = rw.insert(OP_TYPE, inputs, attention.attrs, domain=DOMAIN).output
    if value.scale != 1.0:
        return NoMatch("its values are scaled")
    return _as_before(rw, result, attention, node.output)


def _bias(rw: Rewriter, bias: Value | None, rank: int, heads: int) -> Value | NoMatch | None:
    """The bias as the op wants it, with an axis for heads."""
    if bias is None or rank == 4 or (bias.rank or 0) < 3 or bias.tensor.dims[0] == 1:
        return bias
    if heads > 1:
        return NoMatch("its bias differs between heads that are laid out as samples")
    return rw.op.Unsqueeze(bias, rw.ints(1))


def _as_before(rw: Rewriter, rows: Value, attention: Attention, old: Value) -> Value | NoMatch:
    """[b, t, heads * dim] as it was: [b, heads, t, dim], or with heads within the batch."""
    if attention.heads > 1 or old.rank == 4:
        dims = (*rows.tensor.dims[:2], attention.heads, attention.dim)
        target = reshape_target(rows.tensor, TensorType("float32", dims))
        if target is None:
            return NoMatch("the shape of its heads cannot be written with constants")
        rows = rw.op.Transpose(rw.op.Reshape(rows, rw.ints(*target)), perm=[0, 2, 1, 3])
    if rows.rank != old.rank:
        target = reshape_target(rows.tensor, old.tensor)
        if target is None:
            return NoMatch("the shape of its heads cannot be written with constants")
        rows = rw.op.Reshape(rows, rw.ints(*target))
    return rows if rows.type == old.type else NoMatch("its batch and that of its bias differ")


class FuseAttention(RewritePass):
    """Replaces scaled dot-product attention by `graphopt::Attention`.

    Heads may be split off in any way that leaves each of them columns of rows: they are then read
    where they are, and the reshapes and transposes around them are not needed. Queries, keys and
    values may be columns of one product. One bias (a mask, say) may be added to the scores.
    Fidelity: reassociates.

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
    rules = (products_to_attention,)
