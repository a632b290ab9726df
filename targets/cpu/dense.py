"""Dense layers: the op that they become on the CPU, what is taken into it, and its kernels.

Rules and the order of operands serve GPUs as well.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.tirx import PrimFunc

from graphopt.analysis.cost import Cost, cost_rule, streaming
from graphopt.ir.dims import Dim, product, symbols
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import TensorType, Type
from graphopt.rewrite import NoMatch, Rewriter, Rule, const, op, rule, var
from graphopt.rewrite.pattern import Pattern
from graphopt.targets.cpu import DOMAIN, activations, gates, joined_data, quantized_dense
from graphopt.targets.cpu.kernels import bf16_gemm, dot
from graphopt.targets.cpu.kernels.bfloat16 import Words
from graphopt.targets.cpu.kernels.gemm import gemm
from graphopt.targets.cpu.kernels.panels import (
    default_params,
    pack_bias,
    pack_columns,
    pack_weights,
)
from graphopt.targets.cpu.packed_weights import dequantize_to_weights, stored_to_dequantized
from graphopt.targets.cpu.rates import operations
from graphopt.targets.kernels.epilogue import MAX_STEPS, Epilogue, Step
from graphopt.targets.relax.lowering import Lowering, lowers
from graphopt.targets.relax.sharing import WIDE

LEAST_WIDE = 256 << 10
"""Bytes of the weights of a layer that several threads may share; a core reads them in 10 us."""

x, w, b, y, t = var("x"), const("w"), const("b"), var("y"), var("t")
# A dense layer before its weights are packed: (x, weights[K, N], bias[N]?, *others), an activation
# with its constants per column in `columns`, and `steps`, which say how the others change the
# result; see `Epilogue`. Weights are float32, or int8 with a `scale` per column. With `data` x is
# rounded to 8 bits, or was so by the layer before it, whose `result` says how; with `words`, the
# same to bfloat16.
layer = Pattern("Dense", (x, w, ...), domain=DOMAIN, name="y")


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


RULES: tuple[Rule, ...] = (
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
