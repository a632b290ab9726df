"""`graphopt::TableRows`: ids of several tables as row numbers of one that holds them all.

Inputs: `ids` int[n, f], a table for each column; `rows` int64[f], how many rows each table has, at
least 1; `starts` int64[f], where in the whole each table begins. The whole ends with the last of
these tables. Output: int64[n, f], the rows of the whole that the ids name. Negative ids count from
the end of their own table. A column with an id outside its own table gives numbers that are no
rows of the whole either, so that the Gather that follows fails as it would have: no id ever
reads a neighbour.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser

from graphopt.errors import InvalidModelError
from graphopt.ir.graph import Node
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import TensorType, Type

DOMAIN = "graphopt"
OP_TYPE = "TableRows"

# The largest and the smallest id of a column tell whether any is outside, which is much cheaper in
# ONNX Runtime than comparing all. Mod costs half of a Gather, so it runs only for negative ids.
_BODY = """
    zero = Constant <value_int = 0> ()
    axis0 = Constant <value_ints = [0]> ()
    wide = Cast <to = 7> (ids)
    lowest = Neg (rows)
    ends = Add (starts, rows)
    beyond = ReduceMax <keepdims = 0> (ends)
    largest = ReduceMax <keepdims = 0> (wide, axis0)
    smallest = ReduceMin <keepdims = 0> (wide, axis0)
    above = GreaterOrEqual (largest, rows)
    below = Less (smallest, lowest)
    outside = Or (above, below)
    first = Where (outside, beyond, starts)
    least = ReduceMin <keepdims = 0> (smallest)
    counts_back = Less (least, zero)
    row = If (counts_back) <
        then_branch = backwards () => (row_back) {
            own = Mod (wide, rows)
            row_back = Add (own, first)
        },
        else_branch = forwards () => (row_on) { row_on = Add (wide, first) }
    >
"""


def table_rows(ids: np.ndarray, rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """What the op computes for ids within their tables, in NumPy."""
    return np.asarray(np.mod(ids, rows) + starts)


@type_rule(OP_TYPE, domain=DOMAIN)
def _table_rows(node: Node) -> list[Type | None]:
    def fail(reason: str) -> InvalidModelError:
        where = ", ".join(repr(name) for name in node.where[:3])
        return InvalidModelError(f"{node.op} (node {where}): {reason}")

    types = [None if value is None else value.type for value in node.inputs]
    if len(types) != 3 or not all(isinstance(t, TensorType) for t in types):
        raise fail("its inputs must be tensors: ids, rows, starts")
    ids, rows, starts = (t for t in types if isinstance(t, TensorType))
    if (rows.rank, rows.dtype) != (1, "int64") or rows != starts:
        raise fail(f"rows and starts must be int64[f], not {rows} and {starts}")
    if ids.rank != 2 or ids.dtype not in ("int32", "int64") or ids.dims[1] != rows.dims[0]:
        raise fail(f"ids must be int32 or int64 [n, {rows.dims[0]}], not {ids}")
    return [tensor_type("int64", ids.dims)]


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    return OP_TYPE


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    assert node.graph is not None
    return onnx.parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["": {node.graph.opset()}]>\n'
        f"{OP_TYPE} (ids, rows, starts) => (row) {{\n{_BODY}\n}}"
    )
