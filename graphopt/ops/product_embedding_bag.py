"""`graphopt::ProductEmbeddingBag`: bags of rows that are made of parts out of small codebooks.

Inputs: `codes` and `books` as in `graphopt::ProductLookup`; the rest as `coded_bags` describes.
"""

from __future__ import annotations

from functools import partial

import onnx

from graphopt.ir.graph import Node
from graphopt.ir.infer import type_rule
from graphopt.ir.types import Type
from graphopt.ops.coded_bags import DOMAIN, bag_function, bag_type, form_name
from graphopt.ops.product_lookup import assembled, check_books, parts_of

OP_TYPE = "ProductEmbeddingBag"


@type_rule(OP_TYPE, domain=DOMAIN)
def _product_embedding_bag(node: Node) -> list[Type | None]:
    return bag_type(node, check_books(node))


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    return f"{OP_TYPE}__{form_name(node)}_{parts_of(node)}_parts"


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    found = partial(assembled, parts_of(node))
    return bag_function(node, function_name(node), ("codes", "books"), found)
