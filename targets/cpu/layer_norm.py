"""Layer normalization over the last axis, by a kernel of its own."""

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

x, scale = var("x"), const("scale")


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


RULES = (layer_normalization_to_rows,)


@lowers("LayerNorm", domain=DOMAIN)
def _lower_layer_norm(lower: Lowering, node: Node) -> Any:
    x, scale, shift = node.inputs
    assert x is not None and scale is not None and shift is not None
    width = x.tensor.dims[-1]
    assert isinstance(width, int)  # the rule saw to it
    rows = lower.dim(product(x.tensor.dims[:-1]))
    kernel = layer_norm(width, node.attrs["epsilon"], node.attrs["lanes"])
    operands = [lower.reshape(lower.expr(x), [rows, width]), lower.expr(scale), lower.expr(shift)]
    (result,) = lower.kernel(kernel, operands, [([rows, width], "float32")])
    return lower.reshape(result, lower.shape(node.output))
