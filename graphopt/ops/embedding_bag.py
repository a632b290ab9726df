"""`graphopt::EmbeddingBag`: rows of a table looked up and pooled, one bag of ids a result row.

Inputs: `table` float[rows, dim]; `ids` int[n]; `offsets` int[b], or int[b + 1] with
`include_last_offset`; `weights` float[n] (optional), which multiply the rows they belong to. Bag `i` is
`ids[offsets[i]:offsets[i + 1]]`, the last one everything from its offset on. Offsets must not decrease
and must lie in [0, n]. Without offsets `ids` (and `weights`) are [b, k], and every row of them is a bag.
Output: float[b, dim]. Negative ids count from the end of the table, as in ONNX Gather.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import onnx.parser

from graphopt.errors import InvalidModelError
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Attr, Node
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import TensorType, Type, is_float

DOMAIN = "graphopt"
OP_TYPE = "EmbeddingBag"
Mode = Literal["sum", "mean", "max"]

CHUNK = 16
"""Ids that the function body pools at once. Bags are cut into chunks of at most this many, so that one
long bag does not make every other bag as long; 16 measures best for bags of 1 to 1000 ids."""


@dataclass(frozen=True)
class EmbeddingBag:
    """The attributes of one node.

    Attributes:
        mode: how the rows of a bag become one. A weighted mean still divides by the number of rows.
        include_last_offset: `offsets` ends with the end of the last bag (CSR).
        padding_idx: ids that read this row do not count, in any mode; None for no padding.
        empty: the value of a bag in which nothing counts.
    """

    mode: Mode = "sum"
    include_last_offset: bool = False
    padding_idx: int | None = None
    empty: float = 0.0

    @staticmethod
    def of(node: Node) -> EmbeddingBag:
        """The attributes of `node`."""
        padding = node.attr("padding_idx")
        return EmbeddingBag(
            node.attr("mode", "sum"),
            bool(node.attr("include_last_offset", 0)),
            None if padding is None else int(padding),
            float(node.attr("empty", 0.0)),
        )

    @property
    def attrs(self) -> dict[str, Attr]:
        """What a node carries."""
        attrs: dict[str, Attr] = {"mode": self.mode, "empty": self.empty}
        if self.include_last_offset:
            attrs["include_last_offset"] = 1
        if self.padding_idx is not None:
            attrs["padding_idx"] = self.padding_idx
        return attrs

    @property
    def nothing(self) -> float:
        """What pooling starts from, and so gives for a bag in which nothing counts."""
        return float("-inf") if self.mode == "max" else 0.0

    def pool(
        self,
        table: np.ndarray,
        ids: np.ndarray,
        offsets: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> np.ndarray:
        """What the op computes, bag by bag in NumPy; the order of additions is NumPy's."""
        if offsets is None:
            bounds = np.arange(ids.shape[0] + 1) * ids.shape[1]
        else:
            end = [] if self.include_last_offset else [len(ids)]
            bounds = np.append(offsets, end).astype(np.int64)
        flat = ids.reshape(-1)
        counts = np.ones(flat.shape, bool)
        if self.padding_idx is not None:
            counts = flat % len(table) != self.padding_idx % len(table)
        rows = table[flat] if weights is None else table[flat] * weights.reshape(-1, 1)
        pooled = np.full((max(len(bounds) - 1, 0), table.shape[1]), self.empty, table.dtype)
        for bag, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:])):
            kept = rows[start:stop][counts[start:stop]]
            if len(kept):
                pooled[bag] = getattr(kept, self.mode)(axis=0)
        return pooled


@type_rule(OP_TYPE, domain=DOMAIN)
def _embedding_bag(node: Node) -> list[Type | None]:
    def fail(reason: str) -> InvalidModelError:
        where = ", ".join(repr(name) for name in node.where[:3])
        return InvalidModelError(f"{node.op} (node {where}): {reason}")

    types = [None if v is None else v.type for v in (*node.inputs, None, None)[:4]]
    if any(t is not None and not isinstance(t, TensorType) for t in types) or None in types[:2]:
        raise fail("its inputs must be tensors: table, ids, offsets, weights")
    table, ids, offsets, weights = types
    assert isinstance(table, TensorType) and isinstance(ids, TensorType)
    if table.rank != 2 or not is_float(table.dtype):
        raise fail(f"the table must be float[rows, dim], not {table}")
    if ids.rank not in (1, 2) or ids.dtype not in ("int32", "int64"):
        raise fail(f"ids must be int32 or int64 of rank 1 or 2, not {ids}")
    if isinstance(weights, TensorType) and (weights.dtype, weights.rank) != (table.dtype, ids.rank):
        raise fail(f"weights must be {table.dtype} of rank {ids.rank}, not {weights}")
    if ids.rank == 2:
        if offsets is not None:
            raise fail("ids of rank 2 have no offsets")
        return [tensor_type(table.dtype, [ids.dims[0], table.dims[1]])]
    if not isinstance(offsets, TensorType) or offsets.rank != 1 or offsets.dtype not in ("int32", "int64"):
        raise fail(f"offsets must be int32 or int64 of rank 1, not {offsets}")
    bags: Dim = offsets.dims[0] - (1 if EmbeddingBag.of(node).include_last_offset else 0)
    return [tensor_type(table.dtype, [bags, table.dims[1]])]


# -------------------------------------------------------------------- as an ONNX function


@dataclass(frozen=True)
class _Variant:
    """What decides the form of the function body; numbers are read from the node's attributes."""

    mode: Mode
    fixed: bool
    weighted: bool
    padded: bool
    csr: bool
    filled: bool

    @staticmethod
    def of(node: Node) -> _Variant:
        bag, ids = EmbeddingBag.of(node), node.inputs[1]
        assert ids is not None
        return _Variant(
            bag.mode,
            ids.rank == 2,
            node.input(3) is not None,
            bag.padding_idx is not None,
            bag.include_last_offset and ids.rank == 1,
            bag.empty != bag.nothing,
        )

    @property
    def name(self) -> str:
        flags = ("fixed", "weighted", "padded", "csr", "filled")
        return "_".join([f"{OP_TYPE}_", self.mode, *(f for f in flags if getattr(self, f))])

    @property
    def inputs(self) -> str:
        return "table, ids, offsets, weights" if self.weighted else "table, ids, offsets"


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    return _Variant.of(node).name


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX (opset 18 and later) what `node` computes."""
    assert node.graph is not None
    variant = _Variant.of(node)
    lines = _fixed_body(variant) if variant.fixed else _ragged_body(variant)
    proto = onnx.parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["": {node.graph.opset()}]>\n'
        f"{variant.name} ({variant.inputs}) => (result) {{\n" + "\n".join(lines) + "\n}"
    )
    # The parser has no syntax for attributes with defaults, and what a caller may pass must be declared.
    declared = {"mode": variant.mode, "include_last_offset": 0, "empty": 0.0}
    proto.attribute_proto.extend(onnx.helper.make_attribute(k, v) for k, v in declared.items())
    proto.attribute.append("padding_idx")
    return proto


def _constants(variant: _Variant) -> Iterator[str]:
    yield f"""
        zero = Constant <value_int = 0> ()
        one = Constant <value_int = 1> ()
        axis0 = Constant <value_ints = [0]> ()
        axis1 = Constant <value_ints = [1]> ()
        axis2 = Constant <value_ints = [2]> ()
        nothing_f32 = Constant <value_float = {"-inf" if variant.mode == "max" else "0.0"}> ()
        nothing = CastLike (nothing_f32, table)"""


def _rows(variant: _Variant) -> Iterator[str]:
    """`wanted` [b, k] → `rows` [b, k, dim] and, with padding, `counts` [b, k]."""
    yield "looked_up = Gather <axis = 0> (table, wanted)"
    if variant.weighted:
        yield """
        weight = Unsqueeze (wanted_weights, axis2)
        rows = Mul (looked_up, weight)"""
    else:
        yield "rows = Identity (looked_up)"
    if variant.padded:
        # Mod takes the sign of the divisor: a negative id and the row it reads become the same number.
        yield """
        size = Shape <end = 1> (table)
        wanted_64 = Cast <to = 7> (wanted)
        wanted_row = Mod (wanted_64, size)
        padding = Constant <value_int: int = @padding_idx> ()
        padding_row = Mod (padding, size)
        is_padding = Equal (wanted_row, padding_row)
        is_other = Not (is_padding)"""


def _result(variant: _Variant) -> Iterator[str]:
    """`pooled` [b, dim], and `count` int64[b, 1] where it is needed → `result`."""
    if variant.mode == "mean":
        yield """
        divisor_64 = Max (count, one)
        divisor = CastLike (divisor_64, table)
        mean = Div (pooled, divisor)"""
    total = "mean" if variant.mode == "mean" else "pooled"
    if variant.filled:
        yield f"""
        empty_f32 = Constant <value_float: float = @empty> ()
        empty = CastLike (empty_f32, table)
        is_empty = Equal (count, zero)
        result = Where (is_empty, empty, {total})"""
    else:
        yield f"result = Identity ({total})"


def _fixed_body(variant: _Variant) -> Iterator[str]:
    """ids [b, k]: look up, mask, reduce."""
    yield from _constants(variant)
    yield "wanted = Identity (ids)"
    if variant.weighted:
        yield "wanted_weights = Identity (weights)"
    yield from _rows(variant)
    if variant.padded:
        yield """
        mask = Unsqueeze (is_other, axis2)
        kept = Where (mask, rows, nothing)
        counted = Cast <to = 7> (is_other)
        count = ReduceSum <keepdims = 1> (counted, axis1)"""
    else:
        yield """
        kept = Identity (rows)
        count = Shape <start = 1> (ids)"""
    reduce = "ReduceMax" if variant.mode == "max" else "ReduceSum"
    yield f"pooled = {reduce} <keepdims = 0> (kept, axis1)"
    yield from _result(variant)


def _ragged_body(variant: _Variant) -> Iterator[str]:
    """ids [n] and offsets: cut the bags into chunks, pool each chunk, pool the chunks of each bag.

    The chunks [c, CHUNK] are dense, so that one Gather and one reduction do most of the work, and at
    most CHUNK times as large as the ids. ScatterElements combines in order; ScatterND is not used
    because ONNX Runtime lets threads race where two updates meet.
    """
    yield from _constants(variant)
    yield from _bounds(variant)
    yield from _chunks()
    yield """
        position = Add (chunk_start_column, lane)
        inside = Less (position, chunk_end_column)
        safe = Where (inside, position, zero)
        wanted = Gather (ids, safe)"""
    if variant.weighted:
        yield "wanted_weights = Gather (weights, safe)"
    yield from _rows(variant)
    yield "counts = And (inside, is_other)" if variant.padded else "counts = Identity (inside)"
    yield from _pooled_chunks(variant)
    yield from _result(variant)


def _bounds(variant: _Variant) -> Iterator[str]:
    """`start`, `end` and `length` of every bag [b]."""
    yield """
        bounds = Cast <to = 7> (offsets)
        last = Constant <value_ints = [-1]> ()
        far = Constant <value_ints = [9223372036854775807]> ()"""
    if variant.csr:
        yield """
        start = Slice (bounds, axis0, last)
        end = Slice (bounds, axis1, far)"""
    else:
        yield """
        n = Shape (ids)
        start = Identity (bounds)
        closed = Concat <axis = 0> (bounds, n)
        end = Slice (closed, axis1, far)"""
    yield "length = Sub (end, start)"


def _chunks() -> Iterator[str]:
    """The `bag`, start and end of every chunk [c]; `lane` [k] counts up to the longest chunk."""
    yield f"""
        chunk = Constant <value_int = {CHUNK}> ()
        chunk_less_one = Constant <value_int = {CHUNK - 1}> ()
        rounded = Add (length, chunk_less_one)
        chunks = Div (rounded, chunk)
        chunks_so_far = CumSum (chunks, zero)
        first_chunk = Sub (chunks_so_far, chunks)
        total = ReduceSum <keepdims = 1> (chunks, axis0)
        total_and_one = Add (total, one)
        no_marks = ConstantOfShape <value = int64[1] {{0}}> (total_and_one)
        bags = Shape (start)
        ones = ConstantOfShape <value = int64[1] {{1}}> (bags)
        marks = ScatterElements <axis = 0, reduction = "add"> (no_marks, first_chunk, ones)
        begun = CumSum (marks, zero)
        begun_at = Slice (begun, axis0, total)
        bag = Sub (begun_at, one)
        chunk_total = Squeeze (total, axis0)
        number = Range (zero, chunk_total, one)
        number_of_first = Gather (first_chunk, bag)
        rank = Sub (number, number_of_first)
        skipped = Mul (rank, chunk)
        bag_start = Gather (start, bag)
        bag_end = Gather (end, bag)
        chunk_start = Add (bag_start, skipped)
        chunk_limit = Add (chunk_start, chunk)
        chunk_end = Min (chunk_limit, bag_end)
        chunk_length = Sub (chunk_end, chunk_start)
        longest = ReduceMax <keepdims = 0> (chunk_length, axis0)
        lane = Range (zero, longest, one)
        chunk_start_column = Unsqueeze (chunk_start, axis1)
        chunk_end_column = Unsqueeze (chunk_end, axis1)"""


def _pooled_chunks(variant: _Variant) -> Iterator[str]:
    """`rows` and `counts` of the chunks → `pooled` [b, dim] and `count` [b, 1]."""
    reduce, combine = ("ReduceMax", "max") if variant.mode == "max" else ("ReduceSum", "add")
    yield f"""
        mask = Unsqueeze (counts, axis2)
        kept = Where (mask, rows, nothing)
        pooled_chunk = {reduce} <keepdims = 0> (kept, axis1)
        dim = Shape <start = 1> (table)
        result_shape = Concat <axis = 0> (bags, dim)
        unpooled = Expand (nothing, result_shape)
        bag_column = Unsqueeze (bag, axis1)
        chunk_shape = Shape (pooled_chunk)
        target = Expand (bag_column, chunk_shape)
        pooled = ScatterElements <axis = 0, reduction = "{combine}"> (unpooled, target, pooled_chunk)"""
    if not (variant.mode == "mean" or variant.filled):
        return
    if variant.padded:
        yield """
        counted = Cast <to = 7> (counts)
        chunk_count = ReduceSum <keepdims = 0> (counted, axis1)
        no_counts = ConstantOfShape <value = int64[1] {0}> (bags)
        bag_count = ScatterElements <axis = 0, reduction = "add"> (no_counts, bag, chunk_count)
        count = Unsqueeze (bag_count, axis1)"""
    else:
        yield "count = Unsqueeze (length, axis1)"
