"""Softmax and places of extremes along the last axis, by kernels of rows."""

from __future__ import annotations

from typing import Any

from graphopt.ir.dims import product
from graphopt.ir.graph import Node
from graphopt.targets.cpu.kernels.extreme_place import extreme_place
from graphopt.targets.cpu.kernels.softmax import softmax
from graphopt.targets.relax.converters import converter_of
from graphopt.targets.relax.lowering import Lowering, lowers
from graphopt.targets.relax.operands import tensor_input

LEAST_SEARCHED = 16
"""Columns; the general code finds places in shorter rows for many at once, and is as fast."""


@lowers("Softmax", "LogSoftmax", target="cpu")
def _softmax(lower: Lowering, node: Node) -> Any:
    if not _is_of_rows(node):
        return _generally(lower, node)
    data, shape = _rows_of(lower, node)
    kernel = softmax(
        shape[1] if isinstance(shape[1], int) else None,
        node.attrs["lanes"],
        logarithm=node.op_type == "LogSoftmax",
    )
    (result,) = lower.kernel(kernel, [data], [(shape, "float32")])
    return lower.reshape(result, lower.shape(node.output))


@lowers("ArgMax", "ArgMin", target="cpu")
def _arg(lower: Lowering, node: Node) -> Any:
    if not _is_of_rows(node, least=LEAST_SEARCHED):
        return _generally(lower, node)
    data, (rows, columns) = _rows_of(lower, node)
    kernel = extreme_place(
        columns if isinstance(columns, int) else None,
        node.attrs["lanes"],
        least=node.op_type == "ArgMin",
        last=bool(node.attr("select_last_index")),
    )
    (result,) = lower.kernel(kernel, [data], [([rows], "int64")])
    return lower.reshape(result, lower.shape(node.output))


def _is_of_rows(node: Node, least: int = 0) -> bool:
    """True for float32 along the last axis, if that has `least` elements or an unknown number."""
    source = tensor_input(node, 0)
    dims, lanes = source.tensor.dims, node.attrs.get("lanes")
    if source.dtype != "float32" or not dims or lanes is None:
        return False
    along_last = node.attr("axis", -1) % len(dims) == len(dims) - 1
    return along_last and not (isinstance(dims[-1], int) and dims[-1] < least)


def _generally(lower: Lowering, node: Node) -> Any:
    general = converter_of(node.op_type, "", "")
    assert general is not None
    return general(lower, node)


def _rows_of(lower: Lowering, node: Node) -> tuple[Any, list[Any]]:
    """The data of a node as a matrix, and its sizes."""
    source = tensor_input(node, 0)
    *leading, last = source.tensor.dims
    shape = [lower.dim(product(leading)), lower.dim(last)]
    return lower.reshape(lower.expr(source), shape), shape
