"""`graphopt::CompressedInteraction`: weighted sums of the products of two sets of feature vectors.

Inputs: `left` float[n, h, d], `right` float[n, m, d], `weights` float[h * m, k], `bias` float[k].
Attribute `activation`: "none" (the default) or "relu". Output: float[n, k, d], where
`out[:, c, e]` is the activation of `bias[c]` plus the sum over i and j of
`weights[i * m + j, c] * left[:, i, e] * right[:, j, e]`. (A layer of the compressed interaction
network: Lian et al., "xDeepFM", 2018.)
"""

from __future__ import annotations

import onnx

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node
from graphopt.ir.infer import failure, tensor_type, type_rule
from graphopt.ir.types import TensorType, Type, is_float
from graphopt.ops.definition import local_function

DOMAIN = "graphopt"
OP_TYPE = "CompressedInteraction"

# One product of matrices with n * d rows. ONNX Runtime multiplies in stretches of the last axis, so
# this is up to twice as fast as a convolution, as the layer is usually written, if there are as
# many features on the right as elements in each, and up to 1.6 times as slow if there are less.
_ROWS = """
    two = Constant<value_ints = [2]>()
    three = Constant<value_ints = [3]>()
    merged = Constant<value_ints = [0, 0, {pairs}]>()
    rows = Transpose<perm = [0, 2, 1]>(left)
    tall = Unsqueeze(rows, three)
    columns = Transpose<perm = [0, 2, 1]>(right)
    wide = Unsqueeze(columns, two)
    products = Mul(tall, wide)
    flat = Reshape(products, merged)
    sums = MatMul(flat, weights)
    linear = Add(sums, bias){activation}
    result = Transpose<perm = [0, 2, 1]>({last})
"""
_CONVOLUTION = """
    one = Constant<value_ints = [1]>()
    two = Constant<value_ints = [2]>()
    merged = Constant<value_ints = [0, {pairs}, {dim}]>()
    tall = Unsqueeze(left, two)
    wide = Unsqueeze(right, one)
    products = Mul(tall, wide)
    flat = Reshape(products, merged)
    turned = Transpose<perm = [1, 0]>(weights)
    kernel = Unsqueeze(turned, two)
    linear = Conv(flat, kernel, bias){activation}
    result = Identity({last})
"""


@type_rule(OP_TYPE, domain=DOMAIN)
def _compressed_interaction(node: Node) -> list[Type | None]:
    types = [None if value is None else value.type for value in node.inputs]
    tensors = [type_ for type_ in types if isinstance(type_, TensorType)]
    if [type_.rank for type_ in tensors] != [3, 3, 2, 1] or len({t.dtype for t in tensors}) != 1:
        shown = ", ".join(map(str, types))
        raise failure(
            node, f"it takes float[n, h, d], float[n, m, d], float[h * m, k], float[k], not {shown}"
        )
    left, right, weights, _ = tensors
    samples, count, dim = left.dims
    if (
        not is_float(left.dtype)
        or not isinstance(weights.dims[0], int)
        or weights.dims[0] != count * right.dims[1]
    ):
        raise failure(node, f"{weights} does not weight the products of {left} and {right}")
    return [tensor_type(left.dtype, [samples, weights.dims[1], dim])]


def _pairs(node: Node) -> Dim:
    weights = node.inputs[2]
    assert weights is not None
    return weights.tensor.dims[0]


def _convolved(node: Node) -> int | None:
    """The length of the features if the body with a convolution is the faster one."""
    right = node.inputs[1]
    assert right is not None
    _, count, dim = right.tensor.dims
    return dim if isinstance(count, int) and isinstance(dim, int) and count < dim else None


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported.

    A Reshape cannot work sizes out where there are no samples, so the body says them.
    """
    suffix = "_relu" if node.attr("activation", "none") == "relu" else ""
    dim = _convolved(node)
    return f"{OP_TYPE}__{_pairs(node)}{'' if dim is None else f'x{dim}'}{suffix}"


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    activation, dim = node.attr("activation", "none"), _convolved(node)
    relu = activation == "relu"
    last, line = ("active", "\n    active = Relu(linear)") if relu else ("linear", "")
    body = _ROWS if dim is None else _CONVOLUTION
    lines = body.format(pairs=_pairs(node), dim=dim, activation=line, last=last)
    signature, defaults = "(left, right, weights, bias) => (result)", {"activation": activation}
    return local_function(node, function_name(node), signature, lines, defaults=defaults)
