"""Normalization over the last axis and softmax along it, one launch each."""

from __future__ import annotations

from typing import Any

from tvm import relax

from graphopt.ir.dims import product
from graphopt.ir.graph import Node
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cuda.kernels import rows
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.relax.converters import converter_of
from graphopt.targets.relax.loops import loops
from graphopt.targets.relax.operands import tensor_input


@lowers("LayerNorm", domain=DOMAIN)
def _layer_norm(lower: CudaLowering, node: Node) -> relax.Expr:
    data, scale, shift = (lower.expr(tensor_input(node, k)) for k in range(3))
    epsilon, centred = node.attrs["epsilon"], bool(node.attrs.get("centred", 1))
    aligned = not lower.is_given(data)

    def body(x: Any, factors: Any, shifts: Any, out: Any) -> None:
        rows.layer_norm(x, factors, shifts, out, epsilon, centred=centred, aligned=aligned)

    return _of_rows(lower, node, body, data, scale, shift)


@lowers("Softmax", "LogSoftmax")
def _softmax(lower: CudaLowering, node: Node) -> Any:
    source = tensor_input(node, 0)
    rank, axis = len(source.tensor.dims), node.attr("axis", -1)
    if source.dtype != "float32" or not rank or axis % rank != rank - 1:
        general = converter_of(node.op_type, "", "")
        assert general is not None
        return general(lower, node)
    data, logarithm = lower.expr(source), node.op_type == "LogSoftmax"
    aligned = not lower.is_given(data)

    def body(x: Any, out: Any) -> None:
        rows.softmax(x, out, logarithm=logarithm, aligned=aligned)

    return _of_rows(lower, node, body, data)


def _of_rows(
    lower: CudaLowering, node: Node, body: Any, data: relax.Expr, *others: relax.Expr
) -> relax.Expr:
    """A kernel of the rows of `data`, as a tensor of its shape."""
    *leading, last = tensor_input(node, 0).tensor.dims
    shape = [lower.dim(product(leading)), lower.dim(last)]
    arguments = [lower.reshape(data, shape), *others]
    (result,) = loops(lower, body, arguments, [(shape, "float32")])
    return lower.reshape(result, lower.shape(node.output))
