"""Weights and biases of linear layers, a Gemm or a MatMul, as passes read and write them."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.rewrite import NoMatch, Rewriter


def is_per_column(bias: Value | None) -> bool:
    """True for a bias that is absent, or a constant that is the same for every row."""
    return bias is None or (bias.const is not None and bias.const.shape[:-1] in ((), (1,)))


def weight_of(node: Node) -> np.ndarray | None:
    """The constant float32 matrix of a layer, as it is stored; None for other nodes."""
    weight = node.const(1)
    if node.op not in ("Gemm", "MatMul") or weight is None or weight.ndim != 2:
        return None
    return None if weight.dtype != np.float32 or node.attr("transA", 0) else weight


def turned(layer: Node, weight: np.ndarray) -> np.ndarray:
    """A weight as the layer stores it as [inputs, outputs]; and the other way round."""
    return weight.T if layer.attr("transB", 0) else weight


def matrix_of(layer: Node) -> np.ndarray:
    """The constant weight of a layer as [inputs, outputs]."""
    weight = layer.const(1)
    assert weight is not None
    return turned(layer, weight)


def rows_of(weight: Value, node: Node) -> np.ndarray | NoMatch:
    """`matrix_of`, for rules that replace the weight."""
    assert weight.const is not None
    if len(weight.uses) > 1:
        return NoMatch("the weight is also read elsewhere, where it must stay as it is")
    if weight.const.ndim != 2 or node.attr("transA", 0):
        return NoMatch("the weight is not one matrix, or the operand is transposed")
    return turned(node, weight.const)


def written(rw: Rewriter, rows: np.ndarray, node: Node, dtype: np.dtype) -> Value:
    """Rows [inputs, outputs] as `node` stores its weight."""
    return rw.const(np.ascontiguousarray(turned(node, rows), dtype))


def shifted_bias(
    rw: Rewriter, node: Node, bias: np.ndarray | None, shift: np.ndarray, rows: np.ndarray
) -> Value:
    """The bias of a Gemm whose operand lacks `shift`, which `rows` of its weight multiply."""
    offset = node.attr("alpha") * (shift @ rows.astype(np.float64))
    total = offset if bias is None else offset + node.attr("beta") * bias.astype(np.float64)
    return rw.const(total.reshape(-1).astype(rows.dtype))
