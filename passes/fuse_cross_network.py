"""Cross layers with weight vectors as `graphopt::CrossNetwork`."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.ops.cross_network import DOMAIN, OP_TYPE
from graphopt.passes._cross_layers import CrossLayer, cross_layer
from graphopt.passes._shapes import reshaped
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.rewrite.pattern import Pattern

network = Pattern(OP_TYPE, (var("x"), ...), domain=DOMAIN, name="network")


@rule(op.Add(var("a"), var("b")))
def layer_to_network(rw: Rewriter, node: Node) -> Value | NoMatch | None:
    """x0 * (x . w) + b + x -> CrossNetwork(x0), where x is x0 or a CrossNetwork of it"""
    layer = cross_layer(node.output)
    if layer is None:
        return None
    below = layer.x.producer if layer.x is not layer.x0 else None
    if layer.x.dtype != "float32" or not isinstance(layer.x.tensor.dims[1], int):
        return NoMatch("its operands are not float32 rows of known length")
    if layer.x is not layer.x0 and (below is None or below.op != f"{DOMAIN}::{OP_TYPE}"):
        return NoMatch("what it adds to is not x0, nor cross layers of it")
    if below is not None and below.inputs[0] is not layer.x0:
        return NoMatch("the layers below are those of another input")
    private = [inner.output for inner in layer.inner - {node}]
    private += [layer.x] if below is not None else []
    for value in private:
        if any(use.user not in layer.inner | layer.around for use in value.uses):
            return NoMatch(f"{value.name!r} inside the layers is also read elsewhere")
    return reshaped(rw, _stacked(rw, layer, below), node.output.shape)


def _stacked(rw: Rewriter, layer: CrossLayer, below: Node | None) -> Value:
    """The network with one layer more. The layers below are a * x0 + bias."""
    dtype, weights, offset = layer.w.dtype, layer.w[:, None], layer.offset
    shifts, bias = np.array([offset]), layer.b
    if below is not None:
        known = [below.const(k) for k in (1, 2, 3)]
        before, earlier, under = (array for array in known if array is not None)
        weights = np.concatenate([before, weights], axis=1)
        shift = under.astype(np.float64) @ layer.w.astype(np.float64) + offset
        shifts, bias = np.append(earlier, shift), under + layer.b
    constants = [rw.const(np.ascontiguousarray(c, dtype)) for c in (weights, shifts, bias)]
    return rw.insert(OP_TYPE, [layer.x0, *constants], domain=DOMAIN).output


@rule(op.Add(network, const("c")))
def constant_into_network(rw: Rewriter, network: Value, c: Value) -> Value | NoMatch:
    """CrossNetwork(x) + c -> CrossNetwork(x), with another bias"""
    made, row = network.producer, c.const
    assert made is not None and row is not None
    bias = made.const(3)
    if bias is None or row.size != bias.size or row.shape[-1] != row.size or row.ndim > 2:
        return NoMatch("it does not add one number per column")
    total = rw.const(bias + row.reshape(-1))
    return rw.insert(OP_TYPE, [*made.inputs[:3], total], domain=DOMAIN).output


class FuseCrossNetwork(RewritePass):
    """Computes cross layers with weight vectors (DCN) as one multiple of their input.

    Needs float32 rows of known length. x' = x0 * (x . w) + b + x is a multiple of x0 plus a
    constant if x is. The multiple takes one product of x0 with the weights of all layers; the
    constants are computed here. Fidelity: reassociates.

    Before:
        (float[N,4] x) => (float[N,4] y) <float[4,1] w, float[4] b, float[4,1] v, float[4] c> {
            d = MatMul(x, w)
            m = Mul(x, d)
            s = Add(m, b)
            u = Add(s, x)
            e = MatMul(u, v)
            n = Mul(x, e)
            t = Add(n, c)
            y = Add(t, u)
        }

    After:
        (float[N,4] x) => (float[N,4] y) <float[4,2] w, float[2] s, float[4] b> {
            y = graphopt.CrossNetwork(x, w, s, b)
        }
    """

    name = "fuse-cross-network"
    fidelity = Fidelity.REASSOCIATES
    rules = (layer_to_network, constant_into_network)
