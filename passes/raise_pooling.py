"""Lookups that are added up, all or as a mask says, as `graphopt::EmbeddingBag`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.ops.embedding_bag import DOMAIN, OP_TYPE, EmbeddingBag
from graphopt.passes._bag_roles import stride_of
from graphopt.passes._id_masks import (
    Mask,
    count_of,
    divisor_of,
    mask_of,
    mean_along,
    plain_ids,
    sum_along,
)
from graphopt.passes._shapes import reshaped
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.rewrite.pattern import Pattern

table, zero = const("table"), const("zero")
ids, mask, divisor = var("ids"), var("mask"), var("divisor")
rows = op.Gather(table, ids).named("rows")
bag = Pattern(OP_TYPE, (table, ids), domain=DOMAIN, name="pooled")


def _no_rows(rows: Value, table: Value, ids: Value) -> str | None:
    """Why `rows` are not those of bags of ids in a table, if they are not."""
    gather = rows.producer
    assert gather is not None and table.const is not None
    if gather.attr("axis") != 0 or table.const.ndim != 2 or table.dtype != "float32":
        return "it does not look up rows of a float32 matrix"
    if ids.rank != 2 or not isinstance(ids.tensor.dims[1], int) or ids.tensor.dims[1] < 1:
        return "the number of ids in a bag is not known"
    return None


def _no_bags(node: Node, rows: Value, table: Value, ids: Value) -> str | None:
    """Why `node` does not add up what comes of `rows` over bags, if it does not."""
    reason = _no_rows(rows, table, ids)
    if reason:
        return reason
    if (sum_along(node.output, 1) or mean_along(node.output, 1)) is None:
        return "it does not add up the rows of a bag"
    return None


def _pooled(
    rw: Rewriter, table: Value, ids: Value, attrs: EmbeddingBag, wanted: Value
) -> Value | NoMatch:
    """The bag, with the shape of `wanted`."""
    made = rw.insert(OP_TYPE, [table, ids], attrs.attrs, domain=DOMAIN).output
    return reshaped(rw, made, wanted.shape)


@rule(op.ReduceSum(rows, ...), op.ReduceMean(rows, ...))
def sum_to_bag(rw: Rewriter, rows: Value, table: Value, ids: Value, node: Node) -> Value | NoMatch:
    """ReduceSum(Gather(table, ids), 1) -> EmbeddingBag(table, ids)"""
    reason = _no_bags(node, rows, table, ids)
    bag = EmbeddingBag("sum" if node.op == "ReduceSum" else "mean")
    return NoMatch(reason) if reason else _pooled(rw, table, ids, bag, node.output)


@rule(
    op.ReduceSum(op.Mul(rows, mask), ...),
    op.ReduceSum(op.Where(mask, rows, zero), ...),
    op.ReduceSum(op.Where(mask, zero, rows), ...),
)
def masked_sum_to_bag(
    rw: Rewriter, rows: Value, table: Value, ids: Value, mask: Value, node: Node
) -> Value | NoMatch:
    """ReduceSum(Gather(table, ids) * (ids != p), 1) -> EmbeddingBag<padding_idx=p>(table, ids)"""
    assert table.const is not None and node.inputs[0] is not None
    reason = _no_bags(node, rows, table, ids)
    if reason:
        return NoMatch(reason)
    masked = node.inputs[0].producer
    found, wide = mask_of(mask, ids.tensor.dims), node.inputs[0].type != rows.type
    assert masked is not None
    if found is None or mask.rank != 3 or mask.tensor.dims[2] != 1 or wide:
        return NoMatch("the mask does not compare each id with a constant")
    if masked.op == "Where":
        kept = masked.inputs[1] is rows
        other = masked.const(2 if kept else 1)
        if other is None or other.any() or found.turned == kept:
            return NoMatch("what it takes at padding is not 0")
    elif found.turned:
        return NoMatch("the mask keeps padding alone")
    return _masked(rw, table, ids, found, node.output)


@rule(op.MatMul(mask, rows))
def masked_product_to_bag(
    rw: Rewriter, rows: Value, table: Value, ids: Value, mask: Value, node: Node
) -> Value | NoMatch:
    """MatMul(ids != p, Gather(table, ids)) -> EmbeddingBag<padding_idx=p>(table, ids)"""
    reason = _no_rows(rows, table, ids)
    if reason:
        return NoMatch(reason)
    found = mask_of(mask, ids.tensor.dims)
    wanted = (ids.tensor.dims[0], 1, ids.tensor.dims[1])
    if found is None or mask.tensor.dims != wanted or found.turned:
        return NoMatch("what it multiplies with does not compare each id with a constant")
    return _masked(rw, table, ids, found, node.output)


def _masked(rw: Rewriter, table: Value, ids: Value, found: Mask, wanted: Value) -> Value | NoMatch:
    """The bag of what `found` says is no padding."""
    assert table.const is not None
    if found.ids is not plain_ids(ids):
        return NoMatch("the mask is one of other ids")
    if not -len(table.const) <= found.padding < len(table.const):
        return NoMatch("the padding is no row of the table")
    if not np.isfinite(table.const).all():
        return NoMatch("the table holds NaN or infinity")
    if found.below:
        ids = rw.op.Max(ids, rw.const(np.array(found.padding, ids.dtype)))
    return _pooled(rw, table, ids, EmbeddingBag(padding_idx=found.padding, by_id=True), wanted)


def _divides_bags(node: Node) -> bool:
    """True if each bag of the first operand is divided by one number."""
    sums, divisor = node.inputs
    assert sums is not None and divisor is not None
    if not sums.rank or divisor.shape is None or node.output.type != sums.type:
        return False
    return divisor.shape == (sums.tensor.dims[0], *[1] * (sums.rank - 1))


def _are_counted(told: Mask, ids: Value) -> bool:
    """True if `told` counts the `ids` that a bag looks up."""
    clipped = ids.producer
    if told.below and clipped is not None and clipped.op == "Max":
        least = clipped.const(1)
        if least is None or least.size != 1 or least.item() != told.padding:
            return False
        assert clipped.inputs[0] is not None
        ids = clipped.inputs[0]
    return told.ids is plain_ids(ids)


@rule(op.Div(bag, divisor), op.Div(op.Reshape(bag, ...), divisor))
def quotient_to_mean(
    rw: Rewriter, table: Value, ids: Value, pooled: Value, divisor: Value, node: Node
) -> Value | NoMatch:
    """EmbeddingBag<padding_idx=p>(table, ids) / (how many ids are not p) -> its mean"""
    assert pooled.producer is not None
    before, found = EmbeddingBag.of(pooled.producer), divisor_of(divisor)
    if before.mode != "sum" or not before.by_id or len(pooled.producer.inputs) != 2:
        return NoMatch("it is not a sum of what is not padding")
    counted = None if found is None else count_of(found[0])
    told = None if counted is None else mask_of(counted, ids.tensor.dims)
    if found is None or told is None or told.turned or not _divides_bags(node):
        return NoMatch("it is not divided by the number of ids that are not padding")
    if not _are_counted(told, ids) or told.padding != before.padding_idx:
        return NoMatch("the ids that are counted are not those that are looked up")
    return _pooled(rw, table, ids, replace(before, mode="mean", empty=found[1]), node.output)


@rule(
    Pattern(
        OP_TYPE,
        (var("rows"), ids, op.Range(zero, var("end"), divisor).shared(), ...),
        domain=DOMAIN,
    )
)
def bags_of_one_length(rw: Rewriter, ids: Value, node: Node) -> Value | NoMatch:
    """EmbeddingBag(table, ids, Range(0, n, 3)) -> EmbeddingBag(table, Reshape(ids, [-1, 3]))"""
    length, weights = stride_of(ids, node.input(2)), node.input(3)
    if length is None or EmbeddingBag.of(node).include_last_offset:
        return NoMatch("its bags are not known to be of one length and to make up all ids")
    shape = rw.ints(-1, length)
    given = [node.inputs[0], rw.op.Reshape(ids, shape)]
    given += [] if weights is None else [None, rw.op.Reshape(weights, shape)]
    return rw.insert(OP_TYPE, given, dict(node.attrs), domain=DOMAIN).output


class RaisePooling(RewritePass):
    """Replaces lookups whose rows are added up or averaged by `graphopt::EmbeddingBag`.

    Needs a float32 table, ids [n, k] of known k, and one constant id for padding, if there is any.
    Where a mask compares ids by order (`ids > 0`), all below are padding, whatever rows they name.
    What is divided by the number of the other ids becomes their mean, whatever keeps it from
    dividing by 0. Bags of one length lose their offsets. Fidelity: reassociates.

    Before:
        (int64[N,3] ids) => (float[N,4] y)
        <float[9,4] t, int64 pad = {0}, int64[3] s = {-1, 3, 1}, int64[1] k = {1}> {
            e = Gather(t, ids)
            q = Equal(ids, pad)
            o = Not(q)
            m = Cast<to=1>(o)
            r = Reshape(m, s)
            p = Mul(e, r)
            y = ReduceSum<keepdims=0>(p, k)
        }

    After:
        (int64[N,3] ids) => (float[N,4] y) <float[9,4] t> {
            y = graphopt.EmbeddingBag<mode="sum", empty=0.0, padding_idx=0, by_id=1>(t, ids)
        }
    """

    name = "raise-pooling"
    fidelity = Fidelity.REASSOCIATES
    rules = (
        sum_to_bag,
        masked_sum_to_bag,
        masked_product_to_bag,
        quotient_to_mean,
        bags_of_one_length,
    )
