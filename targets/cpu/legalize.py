"""Rewrites a graph for the kernels of the CPU target."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Graph, Node
from graphopt.ir.types import dtype_to_numpy
from graphopt.rewrite import RewriteStats, Rule, rewrite
from graphopt.targets.cpu import (
    DOMAIN,
    code_tables,
    codes,
    cosine,
    dense,
    double_dense,
    integer_products,
    interaction_loops,  # noqa: F401  (importing registers its lowering)
    joined_data,
    last_axis,  # noqa: F401  (likewise)
    layer_norm,
    lookup_concat,
    lookup_interaction,
    lookup_loops,  # noqa: F401  (likewise)
    lookup_sums,
    matrix_products,
    mixture_loops,  # noqa: F401  (likewise)
    mixtures,
    pointwise,
    quantized_dense,
    reductions,  # noqa: F401  (likewise)
    rounded_dense,
    row_products,
    trees,  # noqa: F401  (likewise)
    windows,
)
from graphopt.targets.cpu.kernels import attention_tiles, bf16_gemm, dot
from graphopt.targets.cpu.kernels.amx import Amx
from graphopt.targets.cpu.kernels.bfloat16 import Words
from graphopt.targets.cpu.kernels.byte_products import VNNI_LANES
from graphopt.targets.cpu.kernels.panel_ahead import FAR_BYTES
from graphopt.targets.cpu.kernels.reductions import REDUCTIONS
from graphopt.targets.cpu.packed_weights import (
    bias_to_floats,
    codes_in_bytes,
    dequantized_to_dense,
    rows_to_floats,
)
from graphopt.targets.zero_codes import tell_lookups

# Ops whose kernels are told how long vectors are.
_VECTORIZED = (
    "ArgMax",
    "ArgMin",
    "GRU",
    "LSTM",
    "LogSoftmax",
    "RNN",
    *REDUCTIONS,
    "Softmax",
    f"{DOMAIN}::Cosine",
    f"{DOMAIN}::Dense",
    f"{DOMAIN}::DoubleDense",
    f"{DOMAIN}::IntegerProduct",
    f"{DOMAIN}::LayerNorm",
    f"{DOMAIN}::Limit",
    f"{DOMAIN}::LookupInteraction",
    f"{DOMAIN}::MatrixProducts",
    f"{DOMAIN}::Mixture",
    f"{DOMAIN}::Pointwise",
    f"{DOMAIN}::RowProducts",
    "graphopt::Attention",
    "graphopt::AttentionalGRU",
    "graphopt::BiInteraction",
    "graphopt::CompressedInteraction",
    "graphopt::CrossNetwork",
    "graphopt::DotInteraction",
    "graphopt::GRU",
    "graphopt::PairProducts",
    "ai.onnx.ml::TreeEnsembleRegressor",
)
_INTERACTION = f"{DOMAIN}::{lookup_interaction.OP_TYPE}"
_RECURRENT = ("GRU", "LSTM", "RNN", "graphopt::GRU", "graphopt::AttentionalGRU")
_RULES: tuple[Rule, ...] = (
    *dense.RULES,
    *layer_norm.RULES,
    *cosine.RULES,
    *pointwise.RULES,
    *mixtures.RULES,
    *double_dense.RULES,
    *row_products.RULES,
    *matrix_products.RULES,
    *lookup_concat.CONCATENATED,
    lookup_sums.sum_of_lookups,
)


def legalize(
    graph: Graph,
    lanes: int,
    in_bytes: bool = False,
    words: Words | None = None,
    every_layer: bool = False,
    amx: Amx | None = None,
    permutes: bool = False,
) -> None:
    """Turn what the CPU has kernels for into ops of our own, in place.

    Args:
        lanes: float32 elements in a vector register of the target.
        in_bytes: it multiplies bytes, as `byte_products` has it. Quantized layers are computed in
            float32 elsewhere.
        words: how it multiplies bfloat16; None if it does not.
        every_layer: layers multiply bfloat16 wherever it is faster, not only where the graph rounds
            their operands to it. Without `words`, their weights are bfloat16, and widened to be
            multiplied: fewer bytes, which is what a few rows wait for.
        amx: how it multiplies tiles of bytes; None if it does not.
        permutes: it looks up bytes in registers (AVX512-VBMI).
    """
    rewrite(graph, (bias_to_floats, rows_to_floats), RewriteStats())
    tell_lookups(graph)
    rewrite(graph, (codes_in_bytes, *codes.AS_FLOATS, code_tables.gather_to_table), RewriteStats())
    if in_bytes:
        rewrite(graph, (*codes.UNSIGNED, code_tables.table_of_unsigned), RewriteStats())
        layers = (quantized_dense.codes_to_dense, quantized_dense.quantized_to_dense)
        for quantized in (layers, *integer_products.STEPS):
            rewrite(graph, quantized, RewriteStats())
    rewrite(graph, integer_products.ANYWHERE, RewriteStats())
    rewrite(graph, (dequantized_to_dense,), RewriteStats())
    rewrite(graph, _RULES, RewriteStats())
    for rules in (lookup_concat.COMBINED, lookup_concat.COMPUTED):
        rewrite(graph, rules, RewriteStats())
    rewrite(graph, (lookup_interaction.interaction_of_lookups,), RewriteStats())
    to_codes = (quantized_dense.floats_to_codes, lookup_interaction.products_to_codes)
    rewrite(graph, (*to_codes, codes.result_to_codes), RewriteStats())
    for node in graph.walk():
        if node.op in _VECTORIZED:
            node.attrs["lanes"] = lanes
        if in_bytes and lanes == VNNI_LANES and node.op == _INTERACTION:
            lookup_interaction.keep_codes(node)
        if node.op == f"{DOMAIN}::{code_tables.OP_TYPE}":
            node.attrs["permutes"] = permutes
        multiplies_bytes = "data" in node.attrs or node.op == f"{DOMAIN}::IntegerProduct"
        if amx is not None and multiplies_bytes:
            node.attrs["amx"] = amx
        if every_layer and words is not None and words.tiles and _takes_tiles(node):
            node.attrs |= {"words": words, "instruction": words.name}
        weights = node.const(1) if node.op == f"{DOMAIN}::Dense" else None
        if weights is None or weights.dtype != np.float32:
            continue
        k, n = weights.shape
        if not bf16_gemm.suits((k, n), lanes):
            continue
        if words is None:
            if every_layer and not dot.suits(k, n, lanes):
                graph.set_input(node, 1, graph.constant(weights.astype(dtype_to_numpy("bfloat16"))))
        elif every_layer or rounded_dense.take_rounding(node):
            node.attrs["words"] = words
    rewrite(graph, (rounded_dense.floats_to_words,), RewriteStats())
    _tell_far_weights(graph)
    joined_data.read_parts(graph)
    windows.read_windows(graph)


def _takes_tiles(node: Node) -> bool:
    """Whether a kernel multiplies what is no layer by tiles of bfloat16, and is faster so."""
    if node.op == "graphopt::Attention":
        queries, keys = (value.tensor.dims[1] for value in node.inputs[:2] if value is not None)
        return attention_tiles.suits(queries, keys, node.attr("dim"))
    if node.op == f"{DOMAIN}::{lookup_interaction.OP_TYPE}":
        return lookup_interaction.takes_tiles(node)
    weights = node.const(1) if node.op in _RECURRENT else None
    if weights is not None:  # of what comes in, for all steps at once: [directions, columns, width]
        columns = weights.shape[0] * weights.shape[1]
        return bf16_gemm.suits((weights.shape[2], columns), node.attrs["lanes"])
    return node.op == "graphopt::CompressedInteraction"


def _tell_far_weights(graph: Graph) -> None:
    """Set the attribute `far` of all layers where these have more weights than a cache keeps."""
    layers = [node for node in graph.walk() if node.op == f"{DOMAIN}::Dense"]
    weights = [node.const(1) for node in layers]
    if sum(array.nbytes for array in weights if array is not None) > FAR_BYTES:
        for node in layers:
            node.attrs["far"] = True
