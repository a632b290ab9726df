"""Interactions between feature vectors, by the CPU kernels for them."""

from __future__ import annotations

import numpy as np
from tvm import relax

from graphopt.ir.graph import Node
from graphopt.ops import pair_products as pairs_op
from graphopt.ops.dot_interaction import DOMAIN
from graphopt.targets.cpu.kernels.bi_interaction import bi_interaction
from graphopt.targets.cpu.kernels.compressed_interaction import (
    compressed_interaction,
    fold_symmetric,
    params_for,
)
from graphopt.targets.cpu.kernels.cross_network import cross_network
from graphopt.targets.cpu.kernels.dot_interaction import dot_interaction
from graphopt.targets.cpu.kernels.interaction_tiles import interaction_tiles, pack_interaction
from graphopt.targets.cpu.kernels.pair_products import pair_products, weighted_pair_products
from graphopt.targets.cpu.kernels.panels import default_params, pack_bias, pack_weights
from graphopt.targets.relax.lowering import Lowering, lowers


@lowers("DotInteraction", domain=DOMAIN)
def _dot_interaction(lower: Lowering, node: Node) -> relax.Expr:
    features, beside = node.inputs[0], node.input(1)
    assert features is not None
    _, count, dim = features.tensor.dims
    columns = 0 if beside is None else beside.tensor.dims[1]
    if features.dtype != "float32" or not all(isinstance(d, int) for d in (count, dim, columns)):
        raise lower.unsupported(f"its operands are not float32 of known width ({features.type})")
    pairs = np.array(node.attr("pairs"))
    kernel = dot_interaction(count, dim, len(pairs), columns, node.attrs["lanes"])
    places = [lower.constant(side.astype(np.int32)) for side in (pairs // count, pairs % count)]
    head = [] if beside is None else [lower.expr(beside)]
    operands = [lower.expr(features), *places, *head]
    return lower.kernel(kernel, operands, [(lower.shape(node.output), "float32")])[0]


@lowers("BiInteraction", domain=DOMAIN)
def _bi_interaction(lower: Lowering, node: Node) -> relax.Expr:
    features = node.inputs[0]
    assert features is not None
    _, count, dim = features.tensor.dims
    if features.dtype != "float32" or not isinstance(dim, int):
        raise lower.unsupported(f"its features are not float32 of known length ({features.type})")
    fixed = count if isinstance(count, int) else None
    scale, pooled = node.attr("scale", 1.0), bool(node.attr("pooled", 0))
    kernel = bi_interaction(fixed, dim, scale, pooled, node.attrs["lanes"])
    out = [(lower.shape(node.output), "float32")]
    return lower.kernel(kernel, [lower.expr(features)], out)[0]


@lowers("CompressedInteraction", domain=DOMAIN)
def _compressed_interaction(lower: Lowering, node: Node) -> relax.Expr:
    left, right = node.inputs[:2]
    weights, bias = node.const(2), node.const(3)
    assert left is not None and right is not None
    dims = (*left.tensor.dims[1:], right.tensor.dims[1])
    sizes = [size for size in dims if isinstance(size, int)]
    if left.dtype != "float32" or len(sizes) < len(dims):
        raise lower.unsupported(f"its features are not float32 of known sizes ({left.type})")
    if weights is None or bias is None:
        raise lower.unsupported("its weights are not constants")
    count, dim, others = sizes
    maps, same = weights.shape[1], left is right
    activation, words = node.attr("activation", "none"), node.attrs.get("words")
    features = [lower.expr(value) for value in ([left] if same else [left, right])]
    out = [(lower.shape(node.output), "float32")]
    if words is not None:
        constants = [pack_interaction(weights, count, others, same, words), bias]
        kernel = interaction_tiles(count, others, dim, maps, words, activation, same)
        return lower.kernel(kernel, [*features, *map(lower.constant, constants)], out)[0]
    params = params_for(maps, node.attrs["lanes"])
    packed = pack_weights(fold_symmetric(weights, count) if same else weights, params)
    constants = [packed, pack_bias(bias, maps, params)]
    kernel = compressed_interaction(count, others, dim, maps, params, activation, same)
    return lower.kernel(kernel, [*features, *map(lower.constant, constants)], out)[0]


@lowers("CrossNetwork", domain=DOMAIN)
def _cross_network(lower: Lowering, node: Node) -> relax.Expr:
    x, weights, shifts, bias = node.inputs
    assert x is not None and weights is not None and shifts is not None and bias is not None
    if x.dtype != "float32" or weights.const is None:
        raise lower.unsupported(f"its rows are not float32 ({x.type}), or its weights are computed")
    dim, layers = weights.const.shape
    kernel = cross_network(dim, layers, node.attrs["lanes"])
    columns = lower.constant(np.ascontiguousarray(weights.const.T))
    operands = [lower.expr(x), columns, lower.expr(shifts), lower.expr(bias)]
    return lower.kernel(kernel, operands, [(lower.shape(node.output), "float32")])[0]


@lowers("PairProducts", domain=DOMAIN)
def _pair_products(lower: Lowering, node: Node) -> relax.Expr:
    features, weights = node.inputs[0], node.const(1)
    assert features is not None
    _, count, dim = features.tensor.dims
    if features.dtype != "float32" or not isinstance(dim, int) or not isinstance(count, int):
        raise lower.unsupported(f"its features are not float32 of known length ({features.type})")
    left, right, matrices = (np.array(side, np.int32) for side in pairs_op.sides(node))
    pairs, lanes = len(left), node.attrs["lanes"]
    out = [(lower.shape(node.output), "float32")]
    if node.input(1) is None:
        operands = [lower.expr(features), lower.constant(left), lower.constant(right)]
        return lower.kernel(pair_products(count, dim, pairs, lanes), operands, out)[0]
    if weights is None:
        raise lower.unsupported("its weights are not constants")
    # Pairs of one left feature and matrix side by side, in the order they had.
    order = np.lexsort((matrices, left)).astype(np.int32)
    keys = np.stack([left, matrices], 1)[order]
    first = np.flatnonzero(np.append(True, (keys[1:] != keys[:-1]).any(1)))
    starts = np.append(first, pairs).astype(np.int32)
    params = default_params(dim, lanes)
    packed = np.stack([pack_weights(matrix, params) for matrix in weights])
    constants = [packed, *np.ascontiguousarray(keys[first].T), starts, order, right[order]]
    kernel = weighted_pair_products(count, dim, pairs, len(first), len(weights), params)
    operands = [lower.expr(features), *map(lower.constant, constants)]
    return lower.kernel(kernel, operands, out)[0]
