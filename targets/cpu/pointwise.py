"""Convolutions with kernels of one element, as in compressed interaction networks (xDeepFM)."""

from __future__ import annotations

from typing import Any

from graphopt.analysis.cost import Cost, cost_rule, streaming
from graphopt.ir.dims import product
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.rewrite.pattern import Pattern
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.kernels.panels import pack_bias, pack_weights
from graphopt.targets.cpu.kernels.pointwise import pointwise, pointwise_params
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.relax.lowering import Lowering, lowers

x, w, b = var("x"), const("w"), const("b")


@type_rule("Pointwise", domain=DOMAIN)
def _pointwise_type(node: Node) -> list[Type | None]:
    data, weights = node.inputs[0], node.inputs[1]
    assert data is not None and weights is not None
    batch, _, *rest = data.tensor.dims
    return [tensor_type(data.dtype, [batch, weights.tensor.dims[0], *rest])]


@cost_rule("Pointwise", domain=DOMAIN)
def _pointwise_cost(node: Node) -> Cost:
    weights = node.inputs[1]
    assert weights is not None
    extra = (node.input(2) is not None) + ("activation" in node.attrs)
    per_element = 2 * weights.tensor.dims[1] + extra
    return streaming(node, per_element * product(node.output.tensor.dims))


@rule(op.Conv(x, w), op.Conv(x, w, b))
def conv_to_pointwise(rw: Rewriter, node: Node, x: Value, w: Value) -> Value | NoMatch:
    """Conv<kernel_shape=1>(x, w, b) -> Pointwise(x, w, b)"""
    assert w.const is not None
    if x.dtype != "float32" or w.const.size != w.const.shape[0] * w.const.shape[1]:
        return NoMatch("not float32, or its kernel has more than one element")
    if node.attr("group", 1) != 1 or not set(node.attr("strides", ())) <= {1}:
        return NoMatch("it has groups or strides")
    if any(node.attr("pads", ())) or node.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return NoMatch("it pads")
    if not all(isinstance(dim, int) for dim in x.tensor.dims[1:]):
        return NoMatch("the size of a sample is known only at run time")
    weights = rw.const(w.const.reshape(w.const.shape[:2]))
    bias = node.input(2)
    inputs = [x, weights] if bias is None else [x, weights, bias]
    return rw.insert("Pointwise", inputs, {}, domain=DOMAIN).output


_layer = Pattern("Pointwise", (x, w, ...), domain=DOMAIN, name="y")


@rule(op.Relu(_layer))
def relu_to_pointwise(rw: Rewriter, y: Value) -> Value | NoMatch:
    """Relu(Pointwise(…)) -> Pointwise(…, activation="relu")"""
    before = y.producer
    assert before is not None
    if before.attrs.get("activation"):
        return NoMatch("it has an activation already")
    return rw.insert("Pointwise", before.inputs, {"activation": "relu"}, domain=DOMAIN).output


RULES = (conv_to_pointwise, relu_to_pointwise)


@lowers("Pointwise", domain=DOMAIN)
def _lower_pointwise(lower: Lowering, node: Node) -> Any:
    data, weights = node.inputs[0], node.const(1)
    assert data is not None and weights is not None
    n, k = weights.shape
    length = int(product(data.tensor.dims[2:]))  # type: ignore[arg-type]  # the rule saw to it
    batch = lower.dim(data.tensor.dims[0])
    params = pointwise_params(n, length, node.attrs["lanes"])
    packed = lower.constant(pack_weights(weights.T, params))
    bias = lower.constant(pack_bias(node.const(2), n, params))
    kernel = pointwise(k, n, length, params, Activation(node.attrs.get("activation", "none")))
    samples = lower.reshape(lower.expr(data), [batch, k, length])
    (result,) = lower.kernel(kernel, [samples, packed, bias], [([batch, n, length], "float32")])
    return lower.reshape(result, lower.shape(node.output))
