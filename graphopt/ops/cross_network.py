"""`graphopt::CrossNetwork`: the cross layers with weight vectors of DCN, all of them at once.

Inputs: `x` float[n, d], `weights` float[d, k], `shifts` float[k], `bias` float[d]. With a = 1 to
begin with and a = a * (1 + x . weights[:, l]) + shifts[l] for each l, row by row, the output
float[n, d] is a * x + bias. (Wang et al., "Deep & Cross Network for Ad Click Predictions", 2017:
x' = x0 * (x . w) + b + x. Each layer of it is a multiple of x0 plus a constant row, which its
multiples and the next layer's weights tell.)
"""

from __future__ import annotations

import onnx

from graphopt.ir.graph import Node
from graphopt.ir.infer import failure, type_rule
from graphopt.ir.types import TensorType, Type, is_float
from graphopt.ops.definition import local_function

DOMAIN = "graphopt"
OP_TYPE = "CrossNetwork"


@type_rule(OP_TYPE, domain=DOMAIN)
def _cross_network(node: Node) -> list[Type | None]:
    types = [None if value is None else value.type for value in node.inputs]
    tensors = [type_ for type_ in types if isinstance(type_, TensorType)]
    fits = [type_.rank for type_ in tensors] == [2, 2, 1, 1]
    if fits:
        x, weights, shifts, bias = tensors
        fits = is_float(x.dtype) and len({t.dtype for t in tensors}) == 1
        fits = fits and (x.dims[1], *shifts.dims) == weights.dims and bias.dims == x.dims[1:]
    if not fits:
        raise failure(
            node,
            f"it takes float[n, d], float[d, k], float[k], float[d], "
            f"not {', '.join(map(str, types))}",
        )
    return [types[0]]


def _layers(node: Node) -> int:
    weights = node.inputs[1]
    assert weights is not None
    count = weights.tensor.dims[1]
    assert isinstance(count, int)
    return count


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported: one for each depth."""
    return f"{OP_TYPE}__{_layers(node)}"


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    count = _layers(node)
    columns, shifts = ([f"{stem}{k}" for k in range(count)] for stem in ("dot", "shift"))
    lines = [
        "one = Constant<value = float[1] {1}>()",
        "factors = Gemm(x, weights, one)",
        f"{', '.join(columns)} = Split<axis = 1, num_outputs = {count}>(factors)",
        f"{', '.join(shifts)} = Split<axis = 0, num_outputs = {count}>(shifts)",
        "multiple0 = Add(dot0, shift0)",
    ]
    for k in range(1, count):
        lines += [
            f"grown{k} = Mul(multiple{k - 1}, dot{k})",
            f"multiple{k} = Add(grown{k}, shift{k})",
        ]
    lines += [f"scaled = Mul(x, multiple{count - 1})", "result = Add(scaled, bias)"]
    signature = "(x, weights, shifts, bias) => (result)"
    return local_function(node, function_name(node), signature, "\n".join(lines))
