"""`graphopt::EmbeddingBag`: rows of a table looked up and pooled, one bag of ids a result row.

Inputs: `table` float[rows, dim]; `ids` int[n]; `offsets` int[b], or int[b + 1] with
`include_last_offset`; optional `weights` float[n], which multiply the rows they belong to. Bag `i`
is `ids[offsets[i]:offsets[i + 1]]`, the last one everything from its offset on. Offsets must not
decrease and must lie in [0, n]. Without offsets `ids` (and `weights`) are [b, k], and every row of
them is a bag. Output: float[b, dim]. Negative ids count from the end of the table, as in Gather.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Attr, Node
from graphopt.ir.infer import failure, tensor_type, type_rule
from graphopt.ir.types import TensorType, Type, is_float
from graphopt.ops.definition import local_function
from graphopt.ops.embedding_bag_body import NARROW, Body, Mode, Variant

DOMAIN = "graphopt"
OP_TYPE = "EmbeddingBag"


@dataclass(frozen=True)
class EmbeddingBag:
    """The attributes of one node.

    Attributes:
        mode: how the rows of a bag become one. A weighted mean still divides by the number of rows.
        include_last_offset: `offsets` ends with the end of the last bag (CSR).
        padding_idx: ids that read this row do not count, in any mode; None for no padding.
        empty: the value of a bag in which nothing counts.
        by_id: only `padding_idx` itself is padding, no other id that reads the same row. Only for
            sums and means of ids [b, k]; what padding reads must be finite.
    """

    mode: Mode = "sum"
    include_last_offset: bool = False
    padding_idx: int | None = None
    empty: float = 0.0
    by_id: bool = False

    @staticmethod
    def of(node: Node) -> EmbeddingBag:
        """The attributes of `node`."""
        padding = node.attr("padding_idx")
        return EmbeddingBag(
            node.attr("mode", "sum"),
            bool(node.attr("include_last_offset", 0)),
            None if padding is None else int(padding),
            float(node.attr("empty", 0.0)),
            bool(node.attr("by_id", 0)),
        )

    @property
    def attrs(self) -> dict[str, Attr]:
        """What a node carries."""
        attrs: dict[str, Attr] = {"mode": self.mode, "empty": self.empty}
        if self.include_last_offset:
            attrs["include_last_offset"] = 1
        if self.padding_idx is not None:
            attrs["padding_idx"] = self.padding_idx
        if self.by_id:
            attrs["by_id"] = 1
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
            read = flat if self.by_id else flat % len(table)
            counts = read != (self.padding_idx if self.by_id else self.padding_idx % len(table))
        rows = table[flat] if weights is None else table[flat] * weights.reshape(-1, 1)
        pooled = np.full((max(len(bounds) - 1, 0), table.shape[1]), self.empty, table.dtype)
        for bag, (start, stop) in enumerate(pairwise(bounds)):
            kept = rows[start:stop][counts[start:stop]]
            if len(kept):
                pooled[bag] = getattr(kept, self.mode)(axis=0)
        return pooled


@type_rule(OP_TYPE, domain=DOMAIN)
def _embedding_bag(node: Node) -> list[Type | None]:
    types = [None if v is None else v.type for v in (*node.inputs, None, None)[:4]]
    if any(t is not None and not isinstance(t, TensorType) for t in types) or None in types[:2]:
        raise failure(node, "its inputs must be tensors: table, ids, offsets, weights")
    table, ids, offsets, weights = types
    assert isinstance(table, TensorType) and isinstance(ids, TensorType)
    if table.rank != 2 or not is_float(table.dtype):
        raise failure(node, f"the table must be float[rows, dim], not {table}")
    if ids.rank not in (1, 2) or ids.dtype not in ("int32", "int64"):
        raise failure(node, f"ids must be int32 or int64 of rank 1 or 2, not {ids}")
    if isinstance(weights, TensorType) and (weights.dtype, weights.rank) != (table.dtype, ids.rank):
        raise failure(node, f"weights must be {table.dtype} of rank {ids.rank}, not {weights}")
    bag = EmbeddingBag.of(node)
    if bag.by_id and (ids.rank != 2 or bag.mode == "max"):
        raise failure(node, "by_id is for sums and means of ids [b, k]")
    if ids.rank == 2:
        if offsets is not None:
            raise failure(node, "ids of rank 2 have no offsets")
        return [tensor_type(table.dtype, [ids.dims[0], table.dims[1]])]
    assert offsets is None or isinstance(offsets, TensorType)
    if offsets is None or offsets.rank != 1 or offsets.dtype not in ("int32", "int64"):
        raise failure(node, f"offsets must be int32 or int64 of rank 1, not {offsets}")
    bags: Dim = offsets.dims[0] - (1 if bag.include_last_offset else 0)
    return [tensor_type(table.dtype, [bags, table.dims[1]])]


def _variant(node: Node) -> Variant:
    bag, (table, ids) = EmbeddingBag.of(node), node.inputs[:2]
    assert table is not None and ids is not None
    fixed, dim = ids.rank == 2, table.tensor.dims[1]
    return Variant(
        bag.mode,
        fixed=fixed,
        wide=not fixed and not (isinstance(dim, int) and dim <= NARROW),
        weighted=node.input(3) is not None,
        padded=bag.padding_idx is not None and not bag.by_id,
        by_id=bag.padding_idx is not None and bag.by_id,
        csr=bag.include_last_offset and not fixed,
        filled=bag.empty != bag.nothing,
        half=table.dtype in ("float16", "bfloat16"),
    )


def function_name(node: Node) -> str:
    """The name of the local function that `node` calls once exported."""
    return _variant(node).name


def function(node: Node) -> onnx.FunctionProto:
    """The local function that says in standard ONNX what `node` computes."""
    variant = _variant(node)
    body = Body(variant)
    result = body.build()
    inputs = "table, ids, offsets, weights" if variant.weighted else "table, ids, offsets"
    signature = f"({inputs}) => ({result})"
    defaults = {"mode": variant.mode, "include_last_offset": 0, "empty": 0.0, "by_id": 0}
    return local_function(node, variant.name, signature, body.text, ["padding_idx"], defaults)
