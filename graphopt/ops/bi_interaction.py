"""`graphopt::BiInteraction`: all products of two different feature vectors of a sample, added up.

Input: `features` float[n, f, d]. Attributes: `scale` (1), `pooled` (0). Output: float[n, d],
`scale * ((sum of the features)^2 - sum of the features^2)` element by element, which is
2 * `scale` times the sum of the products of all pairs; if `pooled`, its sum over d: float[n, 1].
(Rendle, "Factorization Machines", 2010; He and Chua, "Neural Factorization Machines", 2017.)
"""

from __future__ import annotations

import onnx

from graphopt.ir.graph import Node
from graphopt.ir.infer import failure, tensor_type, type_rule
from graphopt.ir.types import TensorType, Type, is_float
from graphopt.ops.definition import local_function

DOMAIN = "graphopt"
OP_TYPE = "BiInteraction"

_BODY = """
    one = Constant<value_ints = [1]>()
    factor = Constant<value_float: float = @scale>()
    total = ReduceSum<keepdims = 0>(features, one)
    first = Mul(total, total)
    squares = Mul(features, features)
    second = ReduceSum<keepdims = 0>(squares, one)
    twice = Sub(first, second)
    result = Mul(twice, factor)
"""
# Added up over whole samples, which is one stretch of memory each.
_POOLED = """
    one = Constant<value_ints = [1]>()
    factor = Constant<value_float: float = @scale>()
    total = ReduceSum<keepdims = 0>(features, one)
    first = ReduceSumSquare(total, one)
    flat = Flatten(features)
    squares = Mul(flat, flat)
    second = ReduceSum(squares, one)
    twice = Sub(first, second)
    result = Mul(twice, factor)
"""


@type_rule(OP_TYPE, domain=DOMAIN)
def _bi_interaction(node: Node) -> list[Type | None]:
    features = None if node.inputs[0] is None else node.inputs[0].type
    if not isinstance(features, TensorType) or features.rank != 3 or not is_float(features.dtype):
        raise failure(node, f"features must be float[n, f, d], not {features}")
    samples, _, dim = features.dims
    return [tensor_type(features.dtype, [samples, 1 if node.attr("pooled", 0) else dim])]


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    return f"{OP_TYPE}__pooled" if node.attr("pooled", 0) else OP_TYPE


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    pooled = node.attr("pooled", 0)
    body, defaults = _POOLED if pooled else _BODY, {"scale": 1.0, "pooled": pooled}
    signature = "(features) => (result)"
    return local_function(node, function_name(node), signature, body, defaults=defaults)
