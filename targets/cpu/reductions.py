"""Reductions over the last axes, by kernels of rows."""

from __future__ import annotations

from typing import Any

from graphopt.ir.content import known_ints
from graphopt.ir.dims import Dim, product
from graphopt.ir.graph import Node
from graphopt.targets.cpu.kernels.reductions import REDUCTIONS, reduce_rows
from graphopt.targets.relax.converters import converter_of
from graphopt.targets.relax.lowering import Lowering, lowers
from graphopt.targets.relax.operands import tensor_input

LEAST = 8
"""Elements of a row; shorter ones the general code reduces as fast, many rows at once."""


@lowers(*REDUCTIONS, target="cpu")
def _reduce(lower: Lowering, node: Node) -> Any:
    sizes, lanes = _rows_of(node), node.attrs.get("lanes")
    if sizes is None or lanes is None:
        general = converter_of(node.op_type, "", "")
        assert general is not None
        return general(lower, node)
    rows, columns = map(lower.dim, sizes)
    kernel = reduce_rows(node.op_type, columns if isinstance(columns, int) else None, lanes)
    data = lower.reshape(lower.expr(tensor_input(node, 0)), [rows, columns])
    (result,) = lower.kernel(kernel, [data], [([rows], "float32")])
    return lower.reshape(result, lower.shape(node.output))


def _rows_of(node: Node) -> tuple[Dim, Dim] | None:
    """How many rows are reduced, and of how many elements; None where the kernel does not suit."""
    data, given = tensor_input(node, 0), node.input(1)
    axes = [] if given is None else known_ints(given.content)
    if data.dtype != "float32" or not data.rank or not axes:
        return None
    dims = data.tensor.dims
    reduced = {axis % len(dims) for axis in axes}
    first = min(reduced)
    if any(dims[axis] != 1 for axis in range(first, len(dims)) if axis not in reduced):
        return None
    columns = product(dims[first:])
    if isinstance(columns, int) and columns < LEAST:
        return None
    return product(dims[:first]), columns
