"""Convolutions as products of matrices, where no position is in several windows."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.passes._convolutions import convolution_as_product
from graphopt.passes._shapes import ints_of
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var

x, w = var("x"), const("w")


@rule(op.Conv(op.Pad(x, ...).named("padded"), w, ...))
def padding_into_convolution(rw: Rewriter, x: Value, padded: Value, node: Node) -> Value | NoMatch:
    """Conv(Pad(x), w, b) -> Conv<pads>(x, w, b)"""
    pad = padded.producer
    assert pad is not None
    amounts, filling, axes = ints_of(pad.inputs[1]), pad.input(2), pad.input(3)
    if pad.attr("mode") != "constant" or amounts is None or axes is not None or min(amounts) < 0:
        return NoMatch("it is not padded by known numbers of constants")
    if filling is not None and (filling.const is None or filling.const.any()):
        return NoMatch("it is not padded by zeros")
    rank = len(amounts) // 2
    if node.attr("auto_pad") not in ("NOTSET", "VALID") or any(amounts[:2] + amounts[rank:][:2]):
        return NoMatch("the convolution pads by itself, or samples or channels are padded")
    own = node.attr("pads") if node.attr("auto_pad") == "NOTSET" else None
    wanted = np.add(own or [0] * (2 * rank - 4), amounts[2:rank] + amounts[rank + 2 :])
    attrs = {**node.attrs, "auto_pad": "NOTSET", "pads": [int(amount) for amount in wanted]}
    return rw.insert("Conv", [x, *node.inputs[1:]], attrs).output


@rule(op.Conv(x, w, ...))
def convolution_to_product(rw: Rewriter, node: Node) -> Value | NoMatch:
    """Conv(x, w, b) -> MatMul(x with channels last, w) + b"""
    return convolution_as_product(rw, node, join=False)


class UnrollConvolutions(RewritePass):
    """Computes a convolution as a product of matrices, with channels last.

    Needs float32, constant weights, no groups, and windows that slide by 1 along one axis of known
    size at most, and along others take each position alone or all of them: as the layers after
    attention are written in SASRec (width 1), or the vertical convolutions of Caser (all of a
    history). Where windows overlap the convolution stays (see `join-windows`). Padding before a
    convolution becomes its own. Fidelity: reassociates.

    Before:
        (float[N,4,9] x) => (float[N,8,9] y) <float[8,4,1] w, float[8] b> {
            y = Conv(x, w, b)
        }

    After:
        (float[N,4,9] x) => (float[N,8,9] y) <float[4,8] v, float[8] b> {
            t = Transpose<perm=[0, 2, 1]>(x)
            h = MatMul(t, v)
            a = Add(h, b)
            y = Transpose<perm=[0, 2, 1]>(a)
        }
    """

    name = "unroll-convolutions"
    fidelity = Fidelity.REASSOCIATES
    rules = (padding_into_convolution, convolution_to_product)
