"""Weights and biases of linear layers, read and written by the rules that fold into them."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.rewrite import NoMatch, Rewriter


def is_per_column(bias: Value | None) -> bool:
    """True for a bias that is absent, or a constant that is the same for every row."""
    return bias is None or (bias.const is not None and bias.const.shape[:-1] in ((), (1,)))


def rows_of(weight: Value, node: Node) -> np.ndarray | NoMatch:
    """The weight of a Gemm or MatMul as [inputs, outputs]."""
    assert weight.const is not None
    if len(weight.uses) > 1:
        return NoMatch("the weight is also read elsewhere, where it must stay as it is")
    if weight.const.ndim != 2 or node.attr("transA", 0):
        return NoMatch("the weight is not one matrix, or the operand is transposed")
    return weight.const.T if node.op == "Gemm" and node.attr("transB") else weight.const


def written(rw: Rewriter, rows: np.ndarray, node: Node, dtype: np.dtype) -> Value:  # type: ignore
    transposed = node.op == "Gemm" and node.attr("transB")
    return rw.const(np.ascontiguousarray(rows.T if transposed else rows, dtype))


def shifted_bias(
    rw: Rewriter, node: Node, bias: np.ndarray | None, shift: np.ndarray, rows: np.ndarray
) -> Value:
    """The bias of a Gemm whose operand lacks `shift`, which `rows` of its weight multiply."""
    offset = node.attr("alpha") * (shift @ rows.astype(np.float64))
    total = offset if bias is None else offset + node.attr("beta") * bias.astype(np.float64)
    return rw.const(total.reshape(-1).astype(rows.dtype))
