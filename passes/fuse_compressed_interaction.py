"""Convolutions of outer products as `graphopt::CompressedInteraction`."""

from __future__ import annotations

import numpy as np

from graphopt.ir.dims import product
from graphopt.ir.graph import Node, Value
from graphopt.ops.compressed_interaction import DOMAIN, OP_TYPE
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.rewrite.pattern import Pattern

x, y, w = var("x"), var("y"), const("w")
layer = Pattern(OP_TYPE, (x, ...), domain=DOMAIN, name="layer")


def _is_outer_product(node: Node) -> bool:
    """True for Einsum("bhd,bmd->bhmd"), whatever the letters."""
    equation = node.attr("equation")
    text = equation.decode() if isinstance(equation, bytes) else equation
    letters = list(dict.fromkeys(c for c in text if c.isalpha()))
    if len(letters) != 4:
        return False
    b, h, d, m = letters
    return text.replace(" ", "") == f"{b}{h}{d},{b}{m}{d}->{b}{h}{m}{d}"


def _with_axis(value: Value, axis: int) -> Value | None:
    """What `value` is with an axis of size 1 inserted, as [n, f, d]."""
    node = value.producer
    source = node.inputs[0] if node is not None and node.op in ("Reshape", "Unsqueeze") else None
    if source is None or source.rank != 3:
        return None
    sizes = list(source.tensor.dims)
    return source if list(value.tensor.dims) == [*sizes[:axis], 1, *sizes[axis:]] else None


def _factors(outer: Value) -> tuple[Value, Value] | None:
    """x and y where `outer` is x[:, i, :] * y[:, j, :] at [:, i, j, :]."""
    node = outer.producer
    if node is None or node.op not in ("Einsum", "Mul") or len(node.inputs) != 2:
        return None
    first, second = node.inputs
    assert first is not None and second is not None
    if node.op == "Einsum":
        return (first, second) if _is_outer_product(node) else None
    for tall, wide in ((first, second), (second, first)):
        left, right = _with_axis(tall, 2), _with_axis(wide, 1)
        if left is not None and right is not None:
            return left, right
    return None


def _is_pointwise(node: Node, weights: np.ndarray) -> bool:
    """True for a Conv over one axis that takes each position alone."""
    plain = not any(node.attr("pads") or ()) and set(node.attr("strides") or [1]) == {1}
    return plain and weights.ndim == 3 and weights.shape[2] == 1 and node.attr("group") == 1


@rule(op.Conv(op.Reshape(op.Einsum(x, y).named("outer"), ...).named("flat"), w, ...),
      op.Conv(op.Reshape(op.Mul(x, y).named("outer"), ...).named("flat"), w, ...))  # fmt: skip
def convolution_to_interaction(
    rw: Rewriter, node: Node, outer: Value, flat: Value, w: Value
) -> Value | NoMatch:
    """Conv(Reshape(outer product of x and y), w) -> CompressedInteraction(x, y, w)"""
    factors, weights, bias = _factors(outer), w.const, node.input(2)
    assert weights is not None
    if factors is None:
        return NoMatch("it is not the outer product of two sets of features")
    left, right = factors
    sizes = (*left.tensor.dims[1:], right.tensor.dims[1])
    if left.dtype != "float32" or not all(isinstance(size, int) for size in sizes):
        return NoMatch("the features are not float32 of known number and length")
    count, dim, others = sizes
    if flat.tensor.dims != (left.tensor.dims[0], product((count, others)), dim):
        return NoMatch("the reshape does more than merging the axes of the features")
    if not _is_pointwise(node, weights) or (bias is not None and bias.const is None):
        return NoMatch("the convolution mixes positions, or its bias is computed")
    if bias is None:
        bias = rw.const(np.zeros(len(weights), weights.dtype))
    inputs = [left, right, rw.const(np.ascontiguousarray(weights[:, :, 0].T)), bias]
    return rw.insert(OP_TYPE, inputs, {"activation": "none"}, domain=DOMAIN).output


@rule(op.Relu(layer))
def activation_into_interaction(rw: Rewriter, layer: Value) -> Value | NoMatch:
    """Relu(CompressedInteraction(…)) -> CompressedInteraction<activation="relu">(…)"""
    made = layer.producer
    assert made is not None
    if made.attrs["activation"] != "none":
        return NoMatch("it has an activation already")
    return rw.insert(OP_TYPE, made.inputs, {"activation": "relu"}, domain=DOMAIN).output


class FuseCompressedInteraction(RewritePass):
    """Computes a convolution of width 1 over an outer product of features as one matrix product.

    A layer of xDeepFM's compressed interaction network. Needs float32 features of known number and
    length, and constant weights. Fidelity: reassociates.

    Before:
        (float[N,3,4] x, float[N,2,4] y) => (float[N,5,4] z)
        <int64[3] s = {-1, 6, 4}, float[5,6,1] w, float[5] b> {
            o = Einsum<equation="bhd,bmd->bhmd">(x, y)
            f = Reshape(o, s)
            c = Conv(f, w, b)
            z = Relu(c)
        }

    After:
        (float[N,3,4] x, float[N,2,4] y) => (float[N,5,4] z) <float[6,5] w, float[5] b> {
            z = graphopt.CompressedInteraction<activation="relu">(x, y, w, b)
        }
    """

    name = "fuse-compressed-interaction"
    fidelity = Fidelity.REASSOCIATES
    rules = (convolution_to_interaction, activation_into_interaction)
