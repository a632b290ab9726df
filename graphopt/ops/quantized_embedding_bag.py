"""`graphopt::QuantizedEmbeddingBag`: bags of rows of a table that is stored in 8 or 4 bits.

Inputs: `codes`, `scales` and the attribute `bits` as in `graphopt::QuantizedLookup`; `ids` and
`offsets` as in `graphopt::EmbeddingBag`, with its attributes `mode` ("sum" or "mean"),
`include_last_offset`, and `padding_idx` together with `by_id`. Output: float32[b, dim], 0 for a
bag in which nothing counts.
"""

from __future__ import annotations

import onnx
import onnx.parser

from graphopt.errors import InvalidModelError
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import TensorType, Type
from graphopt.ops.embedding_bag_body import NARROW, Body, Variant
from graphopt.ops.quantized_lookup import check_codes, dequantized

DOMAIN = "graphopt"
OP_TYPE = "QuantizedEmbeddingBag"


class _Body(Body):
    """The body of a bag whose rows are dequantized as they are looked up."""

    def __init__(self, variant: Variant, bits: int) -> None:
        super().__init__(variant)
        self.bits = bits
        self.lines = ["nothing = Identity (nothing_f32)"]

    def rows(self, ids: str, weights: str, rank: int) -> tuple[str, str | None]:
        self.add(dequantized(self.bits, ids))
        return "found", None


@type_rule(OP_TYPE, domain=DOMAIN)
def _quantized_embedding_bag(node: Node) -> list[Type | None]:
    dim = check_codes(node)
    ids, offsets = node.input(2), node.input(3)
    where = ", ".join(repr(name) for name in node.where[:3])
    if node.attr("mode", "sum") not in ("sum", "mean"):
        raise InvalidModelError(f"{node.op} (node {where}): mode is sum or mean")
    assert ids is not None
    padded, by_id = node.attr("padding_idx") is not None, bool(node.attr("by_id", 0))
    if padded != by_id or (padded and offsets is not None):
        raise InvalidModelError(f"{node.op} (node {where}): padding is by id, of ids [b, k]")
    if ids.rank == 2 and offsets is None:
        return [tensor_type("float32", [ids.tensor.dims[0], dim])]
    if ids.rank != 1 or offsets is None or not isinstance(offsets.type, TensorType):
        raise InvalidModelError(f"{node.op} (node {where}): takes ids [b, k], or [n] and offsets")
    bags: Dim = offsets.tensor.dims[0] - (1 if node.attr("include_last_offset", 0) else 0)
    return [tensor_type("float32", [bags, dim])]


def _variant(node: Node) -> Variant:
    fixed, dim = node.input(3) is None, node.output.tensor.dims[1]
    return Variant(
        node.attr("mode", "sum"),
        fixed=fixed,
        wide=not fixed and not (isinstance(dim, int) and dim <= NARROW),
        weighted=False,
        padded=False,
        csr=bool(node.attr("include_last_offset", 0)) and not fixed,
        filled=False,
        half=False,
        by_id=node.attr("padding_idx") is not None,
    )


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    form = _variant(node).name.partition("__")[2]
    return f"{OP_TYPE}__{form}_{node.attr('bits', 8)}_bits"


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    assert node.graph is not None
    bits, variant = node.attr("bits", 8), _variant(node)
    body = _Body(variant, bits)
    result = body.build()
    proto = onnx.parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["": {node.graph.opset()}]>\n'
        f"{function_name(node)} (codes, scales, ids, offsets) => ({result}) {{\n{body.text}\n}}"
    )
    declared = {"bits": bits, "mode": variant.mode, "include_last_offset": 0, "by_id": 0}
    proto.attribute_proto.extend(onnx.helper.make_attribute(k, v) for k, v in declared.items())
    proto.attribute.append("padding_idx")
    return proto
