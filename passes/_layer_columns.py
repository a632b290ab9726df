"""Columns of layers with constant weights, and ops that act on each of them by itself."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.passes._inline import replace
from graphopt.passes._linear import matrix_of
from graphopt.passes._shapes import slice_bounds
from graphopt.rewrite import Rewriter

_UNARY = frozenset(["Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Softplus", "HardSigmoid"])
_BINARY = frozenset(["Add", "Mul"])


def elementwise_input(node: Node) -> int | None:
    """The input that an activation, or an Add or Mul of a constant per column, is applied to."""
    if node.op in _UNARY:
        return 0
    index = _constant_input(node)
    if node.op not in _BINARY or index is None:
        return None
    data = node.inputs[1 - index]
    return 1 - index if data is not None and _is_per_column(node, index, data) else None


def column_input(node: Node) -> int | None:
    """The input whose columns (its last axis) `node` acts on each by itself, or only moves whole.

    None if there is none, or if not all columns stay in place.
    """
    if node.op not in _KEEPS:
        return elementwise_input(node)
    data, result = node.inputs[0], node.output
    if data is None or not data.shape or not result.shape or data.shape[-1] != result.shape[-1]:
        return None
    return 0 if _KEEPS[node.op](node, len(data.shape)) else None


def _reshape_keeps(node: Node, rank: int) -> bool:
    """With fewer columns it must still be known what goes where."""
    shape = node.const(1)
    if shape is None or 0 in shape[rank - 1 :]:
        return False
    return bool(shape[-1] in (-1, node.output.tensor.dims[-1]))


def _slice_keeps(node: Node, rank: int) -> bool:
    bounds = slice_bounds(node)
    return bounds is not None and rank - 1 not in bounds


def _gather_nd_keeps(node: Node, rank: int) -> bool:
    indices = node.inputs[1]
    length = indices.shape[-1] if indices is not None and indices.shape else None
    return isinstance(length, int) and node.attr("batch_dims") + length < rank


_KEEPS = {
    "Gather": lambda node, rank: node.attr("axis") % rank != rank - 1,
    "GatherND": _gather_nd_keeps,
    "Reshape": _reshape_keeps,
    "Slice": _slice_keeps,
    "Squeeze": lambda node, rank: node.input(1) is not None,
    "Transpose": lambda node, rank: (node.attr("perm") or [0])[-1] == rank - 1,
    "Unsqueeze": lambda node, rank: True,
}


def _constant_input(node: Node) -> int | None:
    return next(
        (k for k, v in enumerate(node.inputs) if v is not None and v.const is not None), None
    )


def _is_per_column(node: Node, index: int, data: Value) -> bool:
    """True for a constant that is one number, or one for each column."""
    constant, shape = node.const(index), node.output.shape
    assert constant is not None
    if constant.size == 1 or not shape or not data.shape:
        return constant.size == 1
    return constant.size == constant.shape[-1] == shape[-1] == data.shape[-1]


def with_outputs(node: Node, before: Node, kept: np.ndarray) -> Value:
    """A Gemm or MatMul that computes the columns `kept` only."""
    matrix, bias = np.ascontiguousarray(matrix_of(node)[:, kept]), node.const(2)
    if bias is not None and bias.size > 1:
        bias = np.ascontiguousarray(bias[..., kept])
    return _rebuilt(Rewriter(before, [node]), node, node.inputs[0], matrix, bias)


def on_columns(node: Node, before: Node, value: Value, kept: np.ndarray) -> Value:
    """What `node`, which `column_input` knows, makes of `value`, its columns `kept` only."""
    rw, index, inputs = Rewriter(before, [node]), column_input(node), list(node.inputs)
    assert index is not None
    inputs[index] = value
    other = _constant_input(node)
    if other is not None and node.op not in _KEEPS:
        constant = node.const(other)
        assert constant is not None
        fewer = constant if constant.size == 1 else np.ascontiguousarray(constant[..., kept])
        inputs[other] = rw.const(fewer)
    shape = node.const(1) if node.op == "Reshape" else None
    if shape is not None and shape[-1] != -1:
        inputs[1] = rw.ints(*shape[:-1], len(kept))
    return rw.insert(node.op, inputs, node.attrs).output


def with_inputs(node: Node, data: Value, mixing: np.ndarray, offset: np.ndarray) -> Value:
    """Replace a Gemm or MatMul by one of fewer inputs, of which all are about `data` @ `mixing`
    + `offset`.

    Returns:
        what it gives now, without a shift of its outputs.
    """
    rw, outgoing = Rewriter(node, [node]), matrix_of(node).astype(np.float64)
    weight, shift = (mixing @ outgoing).astype(np.float32), offset @ outgoing
    if node.op == "Gemm":
        old = node.const(2)
        moved = node.attr("alpha") * shift
        if old is not None and node.attr("beta"):
            moved = moved / node.attr("beta") + old.reshape(-1)
        product = result = _rebuilt(rw, node, data, weight, moved.astype(np.float32))
    else:
        product = _rebuilt(rw, node, data, weight, None)
        result = rw.op.Add(product, rw.const(shift.astype(np.float32)))
    replace(node, [result])
    return product


def _rebuilt(
    rw: Rewriter, node: Node, data: Value | None, matrix: np.ndarray, bias: np.ndarray | None
) -> Value:
    """`node` with another weight [inputs, outputs] and bias."""
    inputs = [data, rw.const(matrix), *([] if bias is None else [rw.const(bias)])]
    attrs = {name: attr for name, attr in node.attrs.items() if name != "transB"}
    return rw.insert(node.op, inputs, attrs).output
