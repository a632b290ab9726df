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

from graphopt.ir.graph import Node
from graphopt.ir.infer import failure, tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.ops.definition import local_function, tensor_inputs

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
    ids, rows, starts = tensor_inputs(node, "ids", "rows", "starts")
    if (rows.rank, rows.dtype) != (1, "int64") or rows != starts:
        raise failure(node, f"rows and starts must be int64[f], not {rows} and {starts}")
    if ids.rank != 2 or ids.dtype not in ("int32", "int64") or ids.dims[1] != rows.dims[0]:
        raise failure(node, f"ids must be int32 or int64 [n, {rows.dims[0]}], not {ids}")
    return [tensor_type("int64", ids.dims)]


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    return OP_TYPE


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    return local_function(node, OP_TYPE, "(ids, rows, starts) => (row)", _BODY)
