"""Features that are looked up for their products alone: DLRM's tables and its interaction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graphopt.analysis.cost import Cost, cost_rule, done_by
from graphopt.analysis.lookups import lookup_rule
from graphopt.ir.dims import product
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.ops.dot_interaction import DOMAIN as FUSED
from graphopt.ops.dot_interaction import OP_TYPE as INTERACTION
from graphopt.rewrite import NoMatch, Rewriter, const, rule, var
from graphopt.rewrite.pattern import Pattern
from graphopt.targets.cpu import DOMAIN, feature_tiles, lookup_concat, lookup_parts
from graphopt.targets.cpu.kernels.row_codes import GROUP, Quantization

OP_TYPE = "LookupInteraction"
LEAST_DIM = 64
"""Elements of features that are worth it; shorter ones are better read where they were joined."""

BYTES = 64
"""What one instruction multiplies."""

x, w = var("x"), const("w")


@type_rule(OP_TYPE, domain=DOMAIN)
def _lookup_interaction_type(node: Node) -> list[Type | None]:
    """Products as they are, or as codes of 8 bits (`result`), in whole groups of GROUP then."""
    return [tensor_type("uint8" if "result" in node.attrs else "float32", node.attrs["shape"])]


@cost_rule(OP_TYPE, domain=DOMAIN)
def _lookup_interaction_cost(node: Node) -> Cost:
    """What is looked up is multiplied where it is, and only the products are written."""
    joined, rows = lookup_parts.cost(node), node.attrs["rows"]
    products = 2 * node.attrs["dim"] * len(node.attrs["pairs"]) * rows
    flops = done_by(node.attrs.get("instruction"), products)
    beside = node.inputs[-1]
    written = (1 if "result" in node.attrs else 4) * product(node.output.tensor.dims)
    extra = 4 * product(beside.tensor.dims) if node.attrs["beside"] else 0  # type: ignore[union-attr]
    return Cost(joined.flops + flops, joined.read + extra, written)


lookup_rule(OP_TYPE, domain=DOMAIN)(lookup_parts.lookups)


@rule(Pattern(INTERACTION, (x, ...), domain=FUSED))
def interaction_of_lookups(rw: Rewriter, node: Node, x: Value) -> Value | NoMatch:
    """DotInteraction(LookupConcat(t, i, v), h) -> LookupInteraction(t, i, v, h)"""
    joined, dims = x, x.tensor.dims
    nodes = [node]
    while joined.producer is not None and joined.producer.op in lookup_concat.VIEWS:
        if len(joined.uses) > 1 or joined.is_graph_output:
            break
        nodes.append(joined.producer)
        joined = joined.producer.inputs[0]  # type: ignore[assignment]
    before = joined.producer
    if before is None or before.op != f"{DOMAIN}::{lookup_parts.OP_TYPE}":
        return NoMatch("its features are not looked up")
    if len(joined.uses) > 1 or joined.is_graph_output or "summed" in before.attrs:
        return NoMatch("its features are read elsewhere too")
    if before.attrs["rows"] != dims[0] or not isinstance(dims[2], int) or dims[2] < LEAST_DIM:
        return NoMatch(f"its rows are not samples, or have fewer than {LEAST_DIM} elements")
    beside = node.input(1)
    width = 0 if beside is None else beside.tensor.dims[1]
    if not isinstance(width, int):
        return NoMatch("how much lies beside the products is known only at run time")
    attrs = {
        "parts": before.attrs["parts"],
        "rows": before.attrs["rows"],
        "shape": node.output.tensor.dims,
        "dim": dims[2],
        "features": dims[1],
        "pairs": node.attr("pairs"),
        "beside": width,
    }
    inputs = [*before.inputs, *([] if beside is None else [beside])]
    origin = tuple(dict.fromkeys(name for n in (before, *nodes) for name in n.origin))
    return rw.insert(OP_TYPE, inputs, attrs, domain=DOMAIN, origin=origin).output


def keep_codes(node: Node) -> None:
    """Let rows of 8 bits that are whole features be multiplied as bytes, by AVX512-VNNI."""
    dim, place, parts = node.attrs["dim"], 0, []
    for part in node.attrs["parts"]:
        is_coded = len(part.terms) == 1 and part.terms[0].bits == 8 and part.pool is None
        whole = is_coded and part.terms[0].dim == dim and place % dim == 0
        parts.append(replace(part, kept=whole and dim % BYTES == 0))
        place += part.width
    node.attrs["parts"] = tuple(parts)


def takes_tiles(node: Node) -> bool:
    """Whether tiles of bfloat16 multiply its features faster than vectors do."""
    in_floats = "result" not in node.attrs and not any(p.kept for p in node.attrs["parts"])
    sizes = node.attrs["features"], node.attrs["dim"], len(node.attrs["pairs"])
    return in_floats and feature_tiles.suits(*sizes)


_PRODUCTS = Pattern(OP_TYPE, (x, ...), domain=DOMAIN, name="y")


@rule(Pattern("Dense", (_PRODUCTS, w, ...), domain=DOMAIN))
def products_to_codes(rw: Rewriter, node: Node, y: Value, w: Value) -> Value | NoMatch:
    """Dense(LookupInteraction(…), w; data=q) -> Dense(LookupInteraction(…; result=q), w; data=q)

    Weights of zeros multiply what fills up the last group of bytes.
    """
    before = y.producer
    assert before is not None and w.const is not None
    if not isinstance(node.attrs.get("data"), Quantization) or "result" in before.attrs:
        return NoMatch("it does not multiply in 8 bits of one range")
    k, n = w.const.shape
    padding = -k % GROUP
    shape = [*before.attrs["shape"][:-1], k + padding]
    attrs = {**before.attrs, "shape": shape, "result": node.attrs["data"]}
    codes = rw.insert(OP_TYPE, before.inputs, attrs, domain=DOMAIN, origin=before.origin).output
    weights = rw.const(np.concatenate([w.const, np.zeros((padding, n), w.const.dtype)]))
    inputs = [codes, weights, *node.inputs[2:]]
    return rw.insert("Dense", inputs, node.attrs, domain=DOMAIN).output
