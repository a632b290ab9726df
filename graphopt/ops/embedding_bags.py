"""`graphopt::EmbeddingBags`: embedding bags of several fields, each with its own table, at once.

Inputs: `table` float32[t, dim], which holds all tables; `rows` and `starts` int64[f], the size and
the first row of every field's table in it, as in `graphopt::TableRows`; `offsets` int[f, b], or
int[f, b + 1] with `include_last_offset`; then `ids` int[n_k] of each field. Output: float32
[b, f, dim]; its [i, k] is what `graphopt::EmbeddingBag` gives for bag `i` of field `k`, 0 for an
empty bag. An id outside its own table, or an offset outside its field's ids, is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from graphopt.ir.graph import Attr, Node
from graphopt.ir.infer import failure, tensor_type, type_rule
from graphopt.ir.types import TensorType, Type
from graphopt.ops.definition import local_function
from graphopt.ops.embedding_bag import EmbeddingBag

DOMAIN = "graphopt"
OP_TYPE = "EmbeddingBags"
_FIRST_IDS = 4

# One scatter serves all bags of all fields. Its slots are, field by field, one for ids before the
# first offset, one for each bag and, if bags have an end, one for ids after the last of them.
_SLOTS = """
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    axis0 = Constant <value_ints = [0]> ()
    axis1 = Constant <value_ints = [1]> ()
    flat = Constant <value_ints = [-1]> ()
    ids = Cast <to = 7> (joined)
    ends = CumSum (sizes, zero)
    bases = Sub (ends, sizes)
    count = ReduceSum <keepdims = 1> (sizes)
    places = Add (count, one)
    base = Unsqueeze (bases, axis1)
    size = Unsqueeze (sizes, axis1)
    own_bounds = Cast <to = 7> (offsets)
    late = Greater (own_bounds, size)
    early = Less (own_bounds, zero)
    astray = Or (late, early)
    moved = Add (own_bounds, base)
    nowhere = Add (places, one)
    known = Where (astray, nowhere, moved)
    bounds = Concat <axis = 1> (base, known)
    flat_bounds = Reshape (bounds, flat)
    slots = Shape (flat_bounds)
    ones = ConstantOfShape <value = int64[1] {1}> (slots)
    no_marks = ConstantOfShape <value = int64[1] {0}> (places)
    marks = ScatterElements <axis = 0, reduction = "add"> (no_marks, flat_bounds, ones)
    begun_or_at_end = CumSum (marks, zero)
    begun = Slice (begun_or_at_end, axis0, count)
    slot = Sub (begun, one)
"""
_ROWS = """
    slots_of_field = Shape <start = 1> (bounds)
    field = Div (slot, slots_of_field)
    own_rows = Gather <axis = 0> (rows, field)
    own_start = Gather <axis = 0> (starts, field)
    lowest = Neg (own_rows)
    above = GreaterOrEqual (ids, own_rows)
    below = Less (ids, lowest)
    outside = Or (above, below)
    own = Mod (ids, own_rows)
    inside = Add (own, own_start)
    table_ends = Add (starts, rows)
    beyond = ReduceMax <keepdims = 0> (table_ends)
    row = Where (outside, beyond, inside)
    found = Gather <axis = 0> (table, row)
"""
_POOL = """
    dim = Shape <start = 1> (table)
    pooled_shape = Concat <axis = 0> (slots, dim)
    nothing = ConstantOfShape <value = float[1] {0}> (pooled_shape)
    slot_column = Unsqueeze (slot, axis1)
    found_shape = Shape (found)
    target = Expand (slot_column, found_shape)
    pooled = ScatterElements <axis = 0, reduction = "add"> (nothing, target, found)
    by_field_shape = Concat <axis = 0> (flat, slots_of_field, dim)
    by_field = Reshape (pooled, by_field_shape)
"""
_MEAN = """
    length = Sub (stop, start)
    length_or_one = Max (length, one)
    divisor = Cast <to = 1> (length_or_one)
    divisor_column = Unsqueeze (divisor, axis2)
    bags = Div (sums, divisor_column)
"""


@dataclass(frozen=True)
class EmbeddingBags:
    """The attributes of one node; they mean what they mean to `EmbeddingBag`."""

    mode: Literal["sum", "mean"] = "sum"
    include_last_offset: bool = False

    @staticmethod
    def of(node: Node) -> EmbeddingBags:
        """The attributes of `node`."""
        return EmbeddingBags(node.attr("mode", "sum"), bool(node.attr("include_last_offset", 0)))

    @property
    def attrs(self) -> dict[str, Attr]:
        """What a node carries."""
        ends: dict[str, Attr] = {"include_last_offset": 1} if self.include_last_offset else {}
        return {"mode": self.mode, **ends}

    def pool(self, tables: list[np.ndarray], offsets: np.ndarray, *ids: np.ndarray) -> np.ndarray:
        """What the op computes, field by field in NumPy."""
        bag = EmbeddingBag(self.mode, self.include_last_offset)
        return np.stack([bag.pool(*field) for field in zip(tables, ids, offsets)], axis=1)


@type_rule(OP_TYPE, domain=DOMAIN)
def _embedding_bags(node: Node) -> list[Type | None]:
    types = [None if value is None else value.type for value in node.inputs]
    tensors = [t for t in types if isinstance(t, TensorType)]
    if len(tensors) < len(types) or len(types) <= _FIRST_IDS:
        raise failure(
            node, "its inputs must be tensors: table, rows, starts, offsets, ids of every field"
        )
    table, rows, starts, offsets, *ids = tensors
    if (table.dtype, table.rank) != ("float32", 2):
        raise failure(node, f"the table must be float32[rows, dim], not {table}")
    if (rows.dtype, rows.dims) != ("int64", (len(ids),)) or rows != starts:
        raise failure(node, f"rows and starts must be int64[{len(ids)}], not {rows} and {starts}")
    if offsets.dtype not in ("int32", "int64") or offsets.rank != 2:
        raise failure(node, f"offsets must be int32 or int64 [{len(ids)}, b], not {offsets}")
    if any(
        t.rank != 1 or t.dtype not in ("int32", "int64") or t.dtype != ids[0].dtype for t in ids
    ):
        raise failure(node, "ids must be vectors, all int32 or all int64")
    bags = offsets.dims[1] - (1 if EmbeddingBags.of(node).include_last_offset else 0)
    return [tensor_type("float32", [bags, len(ids), table.dims[1]])]


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    bags = EmbeddingBags.of(node)
    ends = "_csr" if bags.include_last_offset else ""
    return f"{OP_TYPE}__{bags.mode}{ends}_{len(node.inputs) - _FIRST_IDS}"


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    ids = [f"ids_{k}" for k in range(len(node.inputs) - _FIRST_IDS)]
    signature = f"(table, rows, starts, offsets, {', '.join(ids)}) => (result)"
    body, defaults = _body(EmbeddingBags.of(node), ids), {"mode": "sum", "include_last_offset": 0}
    return local_function(node, function_name(node), signature, body, defaults=defaults)


def _body(bags: EmbeddingBags, ids: list[str]) -> str:
    sizes = [f"size_{name} = Shape ({name})" for name in ids]
    joined = [
        f"sizes = Concat <axis = 0> ({', '.join(f'size_{name}' for name in ids)})",
        f"joined = Concat <axis = 0> ({', '.join(ids)})",
        f"end = Constant <value_ints = [{-1 if bags.include_last_offset else 2**63 - 1}]> ()",
    ]
    is_mean = bags.mode == "mean"
    sums = f"{'sums' if is_mean else 'bags'} = Slice (by_field, axis1, end, axis1)"
    mean = [*_bag_bounds(bags), _MEAN] if is_mean else []
    last = "result = Transpose <perm = [1, 0, 2]> (bags)"
    return "\n".join([*sizes, *joined, _SLOTS, _ROWS, _POOL, sums, *mean, last])


def _bag_bounds(bags: EmbeddingBags) -> list[str]:
    """`start` and `stop` [f, b] of all bags."""
    constants = [
        "axis2 = Constant <value_ints = [2]> ()",
        f"far = Constant <value_ints = [{2**63 - 1}]> ()",
    ]
    later = "Slice (own_bounds, axis1, far, axis1)"
    if bags.include_last_offset:
        start = "start = Slice (own_bounds, axis0, flat, axis1)"
        return [*constants, start, f"stop = {later}"]
    start, stop = "start = Identity (own_bounds)", "stop = Concat <axis = 1> (later, size)"
    return [*constants, start, f"later = {later}", stop]
