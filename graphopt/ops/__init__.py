"""The `graphopt` op domain: fused ops, each with its meaning as an ONNX function.

A function body has one form, so an op with several forms is exported under several names,
`EmbeddingBag__mean_weighted` and the like, and read back under its own.
"""

from __future__ import annotations

import onnx

from graphopt.ir.graph import Graph, Node
from graphopt.ops import (
    attention,
    attentional_gru,
    bi_interaction,
    compressed_interaction,
    cross_network,
    dot_interaction,
    dynamic_matmul,
    embedding_bag,
    embedding_bags,
    gru,
    pair_products,
    product_embedding_bag,
    product_lookup,
    quantized_embedding_bag,
    quantized_lookup,
    stored_weights,
    table_rows,
)

DOMAIN = "graphopt"
_MODULES = (
    attention,
    attentional_gru,
    bi_interaction,
    compressed_interaction,
    cross_network,
    dot_interaction,
    dynamic_matmul,
    embedding_bag,
    embedding_bags,
    gru,
    product_embedding_bag,
    pair_products,
    product_lookup,
    quantized_embedding_bag,
    quantized_lookup,
    stored_weights,
    table_rows,
)
_OPS = {op.OP_TYPE: op for op in _MODULES}


def function_name(node: Node) -> str:
    """What the op of `node`, of our domain, is called in a model file."""
    return _OPS[node.op_type].function_name(node)


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node`, of our domain, computes."""
    return _OPS[node.op_type].function(node)


def op_type(name: str) -> str:
    """The op that is called `name` in a model file."""
    return name.split("__", 1)[0]


def function_protos(graph: Graph) -> list[onnx.FunctionProto]:
    """The local functions that the nodes of our domain in `graph` call, ordered by name."""
    callers = {function_name(node): node for node in graph.walk() if node.domain == DOMAIN}
    return [function(node) for _, node in sorted(callers.items())]
