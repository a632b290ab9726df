"""`graphopt::DotInteraction`: dot products of chosen pairs of the feature vectors of a sample.

Inputs: `features` float[n, f, d]; optional `beside` float[n, e]. Attribute `pairs`: one or more
positions `i * f + j`, each of which stands for the product of features i and j. Output:
float[n, e + len(pairs)], what is in `beside` and then the products. (The interaction layer of DLRM:
Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems",
2019.)
"""

from __future__ import annotations

import onnx

from graphopt.ir.graph import Node
from graphopt.ir.infer import failure, tensor_type, type_rule
from graphopt.ir.types import TensorType, Type, is_float
from graphopt.ops.definition import local_function

DOMAIN = "graphopt"
OP_TYPE = "DotInteraction"

# Rows of a matrix are copied whole where single columns would be taken one by one: picking the
# products of [f * f, n] and turning the result is faster than picking columns of [n, f * f].
_BODY = """
    turned = Transpose<perm = [0, 2, 1]>(features)
    products = MatMul(features, turned)
    flat = Flatten<axis = 1>(products)
    across = Transpose<perm = [1, 0]>(flat)
    positions = Constant<value_ints: ints = @pairs>()
    picked = Gather(across, positions)
    dots = Transpose<perm = [1, 0]>(picked)
"""


@type_rule(OP_TYPE, domain=DOMAIN)
def _dot_interaction(node: Node) -> list[Type | None]:
    features, beside = (None if v is None else v.type for v in (*node.inputs, None)[:2])
    if not isinstance(features, TensorType) or features.rank != 3 or not is_float(features.dtype):
        raise failure(node, f"features must be float[n, f, d], not {features}")
    pairs, count = node.attr("pairs"), features.dims[1]
    if not pairs or not isinstance(count, int) or not all(0 <= p < count**2 for p in pairs):
        raise failure(node, f"pairs must be positions in [0, f * f) with f = {count}, not {pairs}")
    if beside is None:
        return [tensor_type(features.dtype, [features.dims[0], len(pairs)])]
    if not isinstance(beside, TensorType) or (beside.dtype, beside.rank) != (features.dtype, 2):
        raise failure(
            node, f"what is beside the products must be {features.dtype} of rank 2, not {beside}"
        )
    return [tensor_type(features.dtype, [features.dims[0], beside.dims[1] + len(pairs)])]


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    return OP_TYPE if node.input(1) is None else f"{OP_TYPE}__beside"


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    alone = node.input(1) is None
    inputs, last = (
        ("features", "result = Identity(dots)")
        if alone
        else ("features, beside", "result = Concat<axis = 1>(beside, dots)")
    )
    signature = f"({inputs}) => (result)"
    return local_function(node, function_name(node), signature, _BODY + last, ["pairs"])
