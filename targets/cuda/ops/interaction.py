"""Interactions between feature vectors, one launch each."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from graphopt.ir.graph import Node
from graphopt.ops import attention as attention_op
from graphopt.ops import bi_interaction as bi_op
from graphopt.ops import compressed_interaction as compressed_op
from graphopt.ops import cross_network as cross_op
from graphopt.ops import dot_interaction as dot_op
from graphopt.ops import pair_products as pairs_op
from graphopt.ops.attention_body import SOFTMAX
from graphopt.targets.cpu.kernels.compressed_interaction import fold_symmetric
from graphopt.targets.cuda.kernels import interaction, tiles
from graphopt.targets.cuda.kernels.attention import Heads, attention
from graphopt.targets.cuda.kernels.dot_interaction import Shape, dot_interaction
from graphopt.targets.cuda.kernels.packed import pack_weights
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.relax.loops import loops
from graphopt.targets.relax.lowering import int64
from graphopt.targets.relax.operands import tensor_input

_MOST_LAYERS = 16  # sums that a thread keeps in registers
_WIDEST_HEAD = 256  # columns: 8 sums a thread


def is_suited(node: Node) -> bool:
    """False for an interaction that has no kernel here, so that it is computed by its body."""
    suits = {
        f"{dot_op.DOMAIN}::{dot_op.OP_TYPE}": _suits_dots,
        f"{bi_op.DOMAIN}::{bi_op.OP_TYPE}": _suits_bi_interaction,
        f"{compressed_op.DOMAIN}::{compressed_op.OP_TYPE}": _suits_compressed_interaction,
        f"{cross_op.DOMAIN}::{cross_op.OP_TYPE}": _suits_cross_network,
        f"{attention_op.DOMAIN}::{attention_op.OP_TYPE}": _suits_attention,
        f"{pairs_op.DOMAIN}::{pairs_op.OP_TYPE}": _suits_pairs,
    }.get(node.op)
    return suits is None or suits(node)


def _suits_dots(node: Node) -> bool:
    _, count, dim = tensor_input(node, 0).tensor.dims
    beside = node.input(1)
    columns = 0 if beside is None else beside.tensor.dims[1]
    if tensor_input(node, 0).dtype != "float32" or not isinstance(columns, int):
        return False
    return isinstance(count, int) and isinstance(dim, int) and dim > 0 and Shape(count, dim).fits


def _suits_bi_interaction(node: Node) -> bool:
    features = tensor_input(node, 0)
    return features.dtype == "float32" and isinstance(features.tensor.dims[2], int)


def _suits_compressed_interaction(node: Node) -> bool:
    features, weights = [tensor_input(node, k) for k in range(2)], tensor_input(node, 2)
    fixed = all(isinstance(size, int) for value in features for size in value.tensor.dims[1:])
    constant = weights.const is not None and tensor_input(node, 3).const is not None
    return features[0].dtype == "float32" and fixed and constant


def _suits_cross_network(node: Node) -> bool:
    weights = tensor_input(node, 1)
    return (
        tensor_input(node, 0).dtype == "float32"
        and weights.const is not None
        and weights.const.shape[1] <= _MOST_LAYERS
    )


def _suits_pairs(node: Node) -> bool:
    features = tensor_input(node, 0)
    return features.dtype == "float32" and isinstance(features.tensor.dims[2], int)


def _suits_attention(node: Node) -> bool:
    return attention_op.Attention.of(node).dim <= _WIDEST_HEAD


@lowers(dot_op.OP_TYPE, domain=dot_op.DOMAIN)
def _dot_interaction(lower: CudaLowering, node: Node) -> relax.Expr:
    features, beside = tensor_input(node, 0), node.input(1)
    samples, count, dim = lower.shape(features)
    pairs = lower.constant(np.array(node.attr("pairs"), np.int32))
    own = lower.aligned(lower.expr(features))
    flat = lower.reshape(own, [int64(samples) * count, dim])
    arguments = [flat, pairs, *([] if beside is None else [lower.expr(beside)])]

    def body(x: Any, places: Any, *rest: Any) -> None:
        head, out = (None, *rest)[-2:]
        dot_interaction(Shape(count, dim), x, places, head, out)

    return loops(lower, body, arguments, [(lower.shape(node.output), "float32")])[0]


@lowers(bi_op.OP_TYPE, domain=bi_op.DOMAIN)
def _bi_interaction(lower: CudaLowering, node: Node) -> relax.Expr:
    pooled = bool(node.attr("pooled", 0))
    kernel = interaction.pooled_bi_interaction if pooled else interaction.bi_interaction
    scale, features = node.attr("scale", 1.0), lower.expr(tensor_input(node, 0))
    out = [(lower.shape(node.output), "float32")]
    return loops(lower, lambda x, y: kernel(x, scale, y), [features], out)[0]


@lowers(pairs_op.OP_TYPE, domain=pairs_op.DOMAIN)
def _pair_products(lower: CudaLowering, node: Node) -> relax.Expr:
    weighted = node.input(1) is not None
    positions = [node.attr(name) for name in ("pairs", "matrices")[: 1 + weighted]]
    arguments = [lower.expr(tensor_input(node, 0))]
    arguments += [lower.constant(np.array(ints, np.int32)) for ints in positions]
    arguments += [lower.expr(tensor_input(node, 1))] if weighted else []

    def body(x: Any, pairs: Any, *rest: Any) -> None:
        matrices, weights, out = rest if weighted else (None, None, *rest)
        interaction.pair_products(x, pairs, matrices, weights, out)

    return loops(lower, body, arguments, [(lower.shape(node.output), "float32")])[0]


@lowers(compressed_op.OP_TYPE, domain=compressed_op.DOMAIN)
def _compressed_interaction(lower: CudaLowering, node: Node) -> relax.Expr:
    left, right = tensor_input(node, 0), tensor_input(node, 1)
    weights, math = node.const(2), tiles.math_of_floats(lower.math)
    assert weights is not None
    count, others = left.tensor.dims[1], right.tensor.dims[1]
    assert isinstance(count, int) and isinstance(others, int)
    pairs = np.arange(count * others, dtype=np.int32)
    if left is right:
        pairs = pairs.reshape(count, count)[np.triu_indices(count)]
        weights = fold_symmetric(weights, count)
    constants = [lower.constant(array) for array in (pack_weights(weights, math), pairs)]
    arguments = [lower.expr(left), lower.expr(right), *constants, lower.expr(tensor_input(node, 3))]
    activation = node.attr("activation", "none")

    def body(x: Any, y: Any, packed: Any, which: Any, bias: Any, out: Any) -> None:
        tiles.compressed_interaction(math, x, y, packed, which, bias, out, activation)

    return loops(lower, body, arguments, [(lower.shape(node.output), "float32")])[0]


@lowers(cross_op.OP_TYPE, domain=cross_op.DOMAIN)
def _cross_network(lower: CudaLowering, node: Node) -> relax.Expr:
    weights = node.const(1)
    assert weights is not None
    rows = lower.constant(np.ascontiguousarray(weights.T))
    arguments = [lower.expr(tensor_input(node, k)) for k in (0, 2, 3)]
    arguments.insert(1, rows)
    out = [(lower.shape(node.output), "float32")]
    return loops(lower, interaction.cross_network, arguments, out)[0]


@lowers(attention_op.OP_TYPE, domain=attention_op.DOMAIN)
def _attention(lower: CudaLowering, node: Node) -> relax.Expr:
    what, others = attention_op.Attention.of(node), [node.input(3), node.input(4)]
    arguments = [lower.aligned(lower.expr(tensor_input(node, k))) for k in range(3)]
    for value in others:
        if value is not None:
            sizes = [*(1,) * (4 - len(value.tensor.dims)), *value.tensor.dims]
            arguments.append(lower.reshape(lower.expr(value), [lower.dim(size) for size in sizes]))
    pointwise = what.activation != SOFTMAX
    activation = Activation(what.activation) if pointwise else None
    heads = Heads(what.heads, what.dim, what.scale, what.columns, what.guarded, activation)

    def body(q: Any, k: Any, v: Any, *rest: Any) -> None:
        given = iter(rest[:-1])
        bias, factor = (None if value is None else next(given) for value in others)
        attention(heads, q, k, v, bias, factor, rest[-1])

    return loops(lower, body, arguments, [(lower.shape(node.output), "float32")])[0]
