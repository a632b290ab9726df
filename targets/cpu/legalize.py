"""Rewrites a graph for the kernels of the CPU target: dense layers become packed GEMMs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.tirx import PrimFunc

from graphopt.analysis.cost import Cost, cost_rule, streaming
from graphopt.ir.dims import Dim, product, symbols
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import TensorType, Type, dtype_to_numpy
from graphopt.rewrite import NoMatch, Rewriter, RewriteStats, Rule, const, op, rewrite, rule, var
from graphopt.rewrite.pattern import Pattern
from graphopt.targets.cpu import (
    DOMAIN,
    activations,
    code_tables,
    codes,
    cosine,
    double_dense,
    gates,
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
    windows,
)
from graphopt.targets.cpu.kernels import attention_tiles, bf16_gemm, dot
from graphopt.targets.cpu.kernels.amx import Amx
from graphopt.targets.cpu.kernels.bfloat16 import Words
from graphopt.targets.cpu.kernels.byte_products import VNNI_LANES
from graphopt.targets.cpu.kernels.gemm import gemm
from graphopt.targets.cpu.kernels.panel_ahead import FAR_BYTES
from graphopt.targets.cpu.kernels.panels import (
    default_params,
    pack_bias,
    pack_columns,
    pack_weights,
)
from graphopt.targets.cpu.kernels.reductions import REDUCTIONS
from graphopt.targets.cpu.packed_weights import (
    bias_to_floats,
    codes_in_bytes,
    dequantize_to_weights,
    dequantized_to_dense,
    rows_to_floats,
    stored_to_dequantized,
)
from graphopt.targets.cpu.rates import operations
from graphopt.targets.kernels.epilogue import MAX_STEPS, Epilogue, Step
from graphopt.targets.relax.lowering import Lowering, lowers
from graphopt.targets.relax.sharing import WIDE

LEAST_WIDE = 256 << 10
"""Bytes of the weights of a layer that several threads may share; a core reads them in 10 us."""

x, w, b, y, t = var("x"), const("w"), const("b"), var("y"), var("t")
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
)
_INTERACTION = f"{DOMAIN}::{lookup_interaction.OP_TYPE}"
_RECURRENT = ("GRU", "LSTM", "RNN", "graphopt::GRU", "graphopt::AttentionalGRU")
# A dense layer before its weights are packed: (x, weights[K, N], bias[N]?, *others), an activation
# with its constants per column in `columns`, and `steps`, which say how the others change the
# result; see `Epilogue`. Weights are float32, or int8 with a `scale` per column. With `data` x is
# rounded to 8 bits, or was so by the layer before it, whose `result` says how; with `words`, the
# same to bfloat16.
layer = Pattern("Dense", (x, w, ...), domain=DOMAIN, name="y")


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


@type_rule("Dense", domain=DOMAIN)
def _dense_type(node: Node) -> list[Type | None]:
    data, weights = node.inputs[0], node.inputs[1]
    assert data is not None and weights is not None
    columns, result = weights.tensor.dims[1], node.attrs.get("result")
    dtype = "float32" if result is None else "uint8"
    if isinstance(result, Words):
        columns, dtype = result.stride(columns), "int32"  # type: ignore[arg-type]
    return [tensor_type(dtype, [*data.tensor.dims[:-1], columns])]


@cost_rule("Dense", domain=DOMAIN)
def _dense_cost(node: Node) -> Cost:
    weights, others = node.inputs[1], node.inputs[2:]
    assert weights is not None
    k = int(product(weights.tensor.dims[:1]))  # type: ignore[arg-type]
    extra = sum(other is not None for other in others) + ("activation" in node.attrs)
    columns = product([*node.output.tensor.dims[:-1], weights.tensor.dims[1]])
    cost = streaming(node, (operations(node, k) + extra) * columns)
    if "words" not in node.attrs:
        return cost
    return replace(cost, read=cost.read - 2 * product(weights.tensor.dims))


def _emit(rw: Rewriter, x: Value, w: Value, bias: Value | None, **attrs: Any) -> Value:
    inputs = [x, w] if bias is None else [x, w, bias]
    return rw.insert("Dense", inputs, attrs, domain=DOMAIN).output


_WIDTH = "how wide its rows are depends on the sizes of the inputs"


def _as_wide(rw: Rewriter, x: Value, width: Dim) -> bool:
    """Whether rows are so wide, or matrices of which nothing else is known: a kernel sees to it."""
    found = x.tensor.dims[-1]
    given = {name for value in rw.graph.inputs for dim in _sizes(value) for name in symbols(dim)}
    return found == width or (x.rank == 2 and not symbols(found) <= given)


def _sizes(value: Value) -> tuple[Dim, ...]:
    return value.type.shape or () if isinstance(value.type, TensorType) else ()


@rule(op.MatMul(x, w))
def matmul_to_dense(rw: Rewriter, x: Value, w: Value) -> Value | NoMatch:
    """MatMul(x, w) -> Dense(x, w)"""
    if (x.dtype, w.rank) != ("float32", 2) or (x.rank or 0) < 2:
        return NoMatch("not a float32 tensor times a constant matrix")
    if not _as_wide(rw, x, w.tensor.dims[0]):
        return NoMatch(_WIDTH)
    return _emit(rw, x, w, None)


@rule(op.Gemm(x, w), op.Gemm(x, w, b))
def gemm_to_dense(rw: Rewriter, node: Node, x: Value, w: Value) -> Value | NoMatch:
    """Gemm(x, w, b) -> Dense(x, w, b)"""
    if x.dtype != "float32" or node.attr("transA"):
        return NoMatch("not float32, or its first operand is transposed")
    bias, columns = node.input(2), node.output.tensor.dims[-1]
    weights = w.const
    assert weights is not None
    if node.attr("transB"):
        weights = weights.T
    if not _as_wide(rw, x, len(weights)):
        return NoMatch(_WIDTH)
    if node.attr("alpha") != 1.0:
        weights = weights * np.float32(node.attr("alpha"))
    if bias is not None:
        assert bias.const is not None
        if bias.const.size not in (1, columns) or (bias.const.shape or (1,))[-1] != bias.const.size:
            return NoMatch("its bias differs from row to row")
        row = np.broadcast_to(bias.const.reshape(-1), weights.shape[1:])
        bias = rw.const(row * np.float32(node.attr("beta")))
    return _emit(rw, x, rw.const(weights), bias)


@rule(op.Gemm(x, w, t))
def gemm_to_dense_and_sum(rw: Rewriter, node: Node, x: Value, t: Value) -> Value | NoMatch:
    """Gemm(x, w, t) -> Add(Dense(x, w), t), t being computed"""
    if t.const is not None or node.attr("beta") != 1.0:
        return NoMatch("what it adds is a constant, or is scaled")
    attrs = {name: attr for name, attr in node.attrs.items() if name != "beta"}
    return rw.op.Add(rw.insert("Gemm", node.inputs[:2], attrs).output, t)


@rule(op.Add(layer, b))
def add_to_bias(rw: Rewriter, b: Value, y: Value) -> Value | NoMatch:
    """Add(Dense(x, w), b) -> Dense(x, w, b)"""
    before, row = y.producer, activations.per_column(b, y)
    assert before is not None
    if before.attrs.get("activation"):
        return NoMatch("the sum follows an activation")
    if row is None or any(step.op != "add" for step in before.attrs.get("steps", ())):
        return NoMatch("it does not add one number per column, or to a product")
    bias = before.const(2)
    given = [*before.inputs[:2], rw.const(row if bias is None else bias + row)]
    return rw.insert("Dense", [*given, *before.inputs[3:]], before.attrs, domain=DOMAIN).output


@rule(op.Mul(layer, t), op.Add(layer, t))
def operand_to_dense(rw: Rewriter, node: Node, y: Value, t: Value) -> Value | NoMatch:
    """Dense(…) * t, Dense(…) + t -> Dense(…, t)"""
    found = _with_operand(rw, node, y, t)
    other = t.producer
    if isinstance(found, NoMatch) and len(t.uses) == 1 and other and other.op == y.producer.op:  # type: ignore
        return _with_operand(rw, node, t, y)
    return found


def _with_operand(rw: Rewriter, node: Node, y: Value, t: Value) -> Value | NoMatch:
    before = y.producer
    assert before is not None
    every = _rows_sharing(t, y)
    if t is y or t.dtype != y.dtype or every is None:
        return NoMatch("the rows of the other operand are not those of the layer, or shared by it")
    steps = [*before.attrs.get("steps", ()), Step(node.op_type.lower(), every)]  # type: ignore
    if len(steps) > MAX_STEPS:
        return NoMatch(f"it combines its result with {MAX_STEPS} operands already")
    inputs = [*before.inputs, *[None] * (3 - len(before.inputs)), t]
    attrs = {**before.attrs, "steps": steps}
    origin = dict.fromkeys((*before.origin, *rw.origin))
    return rw.insert("Dense", inputs, attrs, domain=DOMAIN, origin=origin).output


def _rows_sharing(t: Value, y: Value) -> int | None:
    """How many rows of `y` share one of `t`, one after the other; 0 if all do, None if not so."""
    if t.type == y.type:
        return 1
    own, rows = t.tensor.dims, y.tensor.dims
    if not own or len(own) > len(rows) or own[-1] != rows[-1]:
        return None
    leading = (1,) * (len(rows) - len(own)) + own[:-1]
    apart = next((k for k, dim in enumerate(leading) if dim == 1), len(leading))
    if leading[:apart] != rows[:apart] or set(leading[apart:]) != {1}:
        return None
    shared = product(rows[apart:-1]) if apart else 0
    return shared if isinstance(shared, int) else None


DENSE_RULES: tuple[Rule, ...] = (
    stored_to_dequantized,
    dequantize_to_weights,
    matmul_to_dense,
    gemm_to_dense,
    gemm_to_dense_and_sum,
    add_to_bias,
    *activations.RULES,
    *gates.RULES,
    operand_to_dense,
)
_RULES: tuple[Rule, ...] = (
    *DENSE_RULES,
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


@lowers("Dense", domain=DOMAIN)
def _lower_dense(lower: Lowering, node: Node) -> Any:
    data, weights = node.inputs[0], node.const(1)
    assert data is not None and weights is not None
    columns = node.output.tensor.dims[-1]
    kernel, constants = _dense_kernel(node, weights)
    if constants[0].nbytes >= LEAST_WIDE:
        kernel = kernel.with_attr(WIDE, constants[0].nbytes)
    rows = lower.dim(product(data.tensor.dims[:-1]))
    arguments = [
        _reshaped(lower, lower.expr(matrix), [rows, matrix.tensor.dims[-1]], data.rank == 2)
        for matrix, _ in joined_data.data_of(node)
    ]
    arguments += [*map(lower.constant, constants), *operands_of(lower, node)]
    (result,) = lower.kernel(kernel, arguments, [([rows, columns], node.output.dtype)])
    return _reshaped(lower, result, lower.shape(node.output), data.rank == 2)


def operands_of(lower: Lowering, dense: Node) -> list[Any]:
    """The operands of a layer's steps as matrices."""
    given = dense.inputs[3 : 3 + len(dense.attrs.get("steps", ()))]
    values = [value for value in given if value is not None]
    return [
        lower.reshape(lower.expr(v), [lower.dim(product(v.tensor.dims[:-1])), v.tensor.dims[-1]])
        for v in values
    ]


def _dense_kernel(node: Node, weights: np.ndarray) -> tuple[PrimFunc, list[np.ndarray]]:
    """The kernel of a dense layer, and its weights, bias and the like as that takes them."""
    k, n = weights.shape
    lanes, bias, scale = node.attrs["lanes"], node.const(2), node.attrs.get("scale")
    epilogue, columns = Epilogue.of(node.attrs), node.attrs.get("columns")
    parts, data = node.attrs.get("parts", ()), node.inputs[0]
    assert data is not None
    if "data" in node.attrs:
        return quantized_dense.int8_kernel(node, weights, epilogue)
    if scale is None and dot.suits(k, n, lanes):
        packed = [dot.pack_columns(weights), np.zeros(n, np.float32) if bias is None else bias]
        packed += [] if columns is None else [columns]
        return dot.dot(k, n, lanes, epilogue, parts), packed
    params, words = node.attrs.get("params"), node.attrs.get("words")
    far = bool(node.attrs.get("far"))
    if words is not None:
        params = params or bf16_gemm.bf16_params(n, lanes, bool(words.tiles))
        packed = [bf16_gemm.pack_bf16(weights, params, words), pack_bias(bias, n, params)]
        handed = {"takes_words": data.dtype == "int32", "gives_words": "result" in node.attrs}
        kernel = bf16_gemm.bf16_gemm(k, n, params, words, epilogue, far, **handed)
    else:
        params = params or default_params(n, lanes, k, far)
        packed = [pack_weights(weights, params), pack_bias(bias, n, params)]
        packed += [] if scale is None else [pack_bias(scale, n, params)]
        stored = weights.dtype.name if scale is None else "int8"
        kernel = gemm(k, n, params, epilogue, stored, parts, far)
    return kernel, packed + ([] if columns is None else [pack_columns(columns, params)])


def _reshaped(lower: Lowering, expr: Any, shape: list[Any], is_matrix: bool) -> Any:
    return expr if is_matrix else lower.bb.emit(relax.op.reshape(expr, shape), "view")
