"""Layer and root mean square normalization over the last axis, by a kernel of their own."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.analysis.cost import Cost, cost_rule, streaming
from graphopt.ir.dims import product
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import type_rule
from graphopt.ir.types import Type
from graphopt.rewrite import NoMatch, Rewriter, const, op, rule, var
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.kernels.layer_norm import layer_norm
from graphopt.targets.relax.lowering import Lowering, lowers

x, scale, mean = var("x"), const("scale"), var("mean")
axes, two, epsilon, one = const("axes"), const("two"), const("epsilon"), const("one")

_deviations = tuple(
    op.Sqrt(op.Add(op.ReduceMean(square, axes, keepdims=1).named("mean"), epsilon))
    for square in (op.Pow(x, two), op.Mul(x, x))
)


@type_rule("LayerNorm", domain=DOMAIN)
def _layer_norm_type(node: Node) -> list[Type | None]:
    assert node.inputs[0] is not None
    return [node.inputs[0].type]


@cost_rule("LayerNorm", domain=DOMAIN)
def _layer_norm_cost(node: Node) -> Cost:
    return streaming(node, 7 * product(node.output.tensor.dims))


@rule(op.LayerNormalization(x, scale), op.LayerNormalization(x, scale, const("shift")))
def layer_normalization_to_rows(
    rw: Rewriter, node: Node, x: Value, scale: Value
) -> list[Value] | NoMatch:
    """LayerNormalization(x, s, b) -> LayerNorm(x, s, b)"""
    shift, rank = node.const(2), x.rank or 0
    width = x.tensor.dims[-1] if rank else None
    assert scale.const is not None
    if x.dtype != "float32" or not isinstance(width, int) or len(node.outputs) > 1:
        return NoMatch("not float32 of a known width, or its moments are read too")
    if node.attr("axis") % rank != rank - 1 or scale.const.shape != (width,):
        return NoMatch("it normalizes more than the last axis")
    if shift is None:
        shift = np.zeros(width, np.float32)
    if shift.shape != (width,):
        return NoMatch("its shift is not one number per column")
    attrs = {"epsilon": node.attr("epsilon")}
    return [rw.insert("LayerNorm", [x, scale, rw.const(shift)], attrs, domain=DOMAIN).output]


@rule(
    *(op.Div(x, deviation) for deviation in _deviations),
    *(op.Mul(x, op.Reciprocal(deviation)) for deviation in _deviations),
    *(op.Mul(x, op.Div(one, deviation)) for deviation in _deviations),
)
def root_mean_square_to_rows(
    rw: Rewriter, node: Node, x: Value, mean: Value, epsilon: Value
) -> Value | NoMatch:
    """x / Sqrt(mean of x ** 2 + epsilon) -> LayerNorm(x, 1, 0), which takes the mean for 0

    (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.) The scale that follows has
    mostly gone into the weights of the next layer.
    """
    width = x.tensor.dims[-1] if x.rank else None
    if x.dtype != "float32" or not isinstance(width, int) or mean.producer is None:
        return NoMatch("not float32 of a known width")
    square, last = mean.producer.inputs[0], mean.producer.const(1)
    assert square is not None and square.producer is not None and epsilon.const is not None
    numbers = [(square.producer.const(1), 2)] if square.producer.op == "Pow" else []
    factors = [v for v in node.inputs if v is not x and v is not None]
    inverse = factors[0].producer if factors else None
    if inverse is not None and node.op == "Mul" and inverse.op == "Div":
        numbers.append((inverse.const(0), 1))
    if any(c is None or c.size != 1 or c.item() != number for c, number in numbers):
        return NoMatch("it is another power than the square, or another quotient")
    along = [] if last is None else [axis % (x.rank or 1) for axis in last.tolist()]
    if along != [(x.rank or 0) - 1] or epsilon.const.size != 1:
        return NoMatch("it normalizes another axis than the last")
    ones, zeros = (rw.const(fill(width, np.float32)) for fill in (np.ones, np.zeros))
    attrs = {"epsilon": float(epsilon.const.item()), "centred": 0}
    return rw.insert("LayerNorm", [x, ones, zeros], attrs, domain=DOMAIN).output


RULES = (layer_normalization_to_rows, root_mean_square_to_rows)


@lowers("LayerNorm", domain=DOMAIN)
def _lower_layer_norm(lower: Lowering, node: Node) -> Any:
    x, scale, shift = node.inputs
    assert x is not None and scale is not None and shift is not None
    width = x.tensor.dims[-1]
    assert isinstance(width, int)  # the rule saw to it
    rows = lower.dim(product(x.tensor.dims[:-1]))
    centred = bool(node.attrs.get("centred", 1))
    kernel = layer_norm(width, node.attrs["epsilon"], node.attrs["lanes"], centred)
    operands = [lower.reshape(lower.expr(x), [rows, width]), lower.expr(scale), lower.expr(shift)]
    (result,) = lower.kernel(kernel, operands, [([rows, width], "float32")])
    return lower.reshape(result, lower.shape(node.output))
