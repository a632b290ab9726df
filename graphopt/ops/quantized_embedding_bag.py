"""`graphopt::QuantizedEmbeddingBag`: bags of rows of a table that is stored in 8 or 4 bits.

Inputs: `codes`, `scales` and the attribute `bits` as in `graphopt::QuantizedLookup`; the rest as
`coded_bags` describes.
"""

from __future__ import annotations

from functools import partial

import onnx

from graphopt.ir.graph import Node
from graphopt.ir.infer import type_rule
from graphopt.ir.types import Type
from graphopt.ops.coded_bags import DOMAIN, bag_function, bag_type, form_name
from graphopt.ops.quantized_lookup import check_codes, dequantized

OP_TYPE = "QuantizedEmbeddingBag"


@type_rule(OP_TYPE, domain=DOMAIN)
def _quantized_embedding_bag(node: Node) -> list[Type | None]:
    return bag_type(node, check_codes(node))


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    return f"{OP_TYPE}__{form_name(node)}_{node.attr('bits', 8)}_bits"


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    bits = node.attr("bits", 8)
    found = partial(dequantized, bits)
    return bag_function(node, function_name(node), ("codes", "scales"), found, bits=bits)
