"""Ids and embedding bags of several tables that are stacked in one."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
from tvm import relax
from tvm.script.ir_builder import tirx as T

from graphopt.ir.graph import Node, Value
from graphopt.ops.embedding_bags import DOMAIN, EmbeddingBags
from graphopt.targets.cpu.kernels.embedding_bag import embedding_bags
from graphopt.targets.cpu.kernels.table_rows import table_rows
from graphopt.targets.kernels.pooling import Pooling
from graphopt.targets.relax.loops import loops, store
from graphopt.targets.relax.lowering import Lowering, int64, lowers
from graphopt.targets.relax.operands import describe_stack


@lowers("TableRows", domain=DOMAIN)
def _table_rows(lower: Lowering, node: Node) -> relax.Expr:
    ids, (rows, starts) = node.inputs[0], _extents(lower, node)
    assert ids is not None
    message = f"graphopt: id out of range: {describe_stack(node)}"
    total = int((rows + starts).max(initial=0))
    kernel = table_rows(total, len(rows), ids.dtype, lower.oob, message)
    args = [lower.expr(ids), lower.constant(np.stack([starts, rows]))]
    return lower.kernel(kernel, args, [(lower.shape(node.output), "int64")])[0]


def _extents(lower: Lowering, node: Node) -> tuple[np.ndarray, np.ndarray]:
    """The sizes and first rows of the tables that inputs 1 and 2 of `node` describe."""
    rows, starts = node.const(1), node.const(2)
    if rows is None or starts is None or rows.min(initial=1) < 1:
        raise lower.unsupported("the sizes of its tables are not known, or one is empty")
    return rows, starts


@lowers("EmbeddingBags", domain=DOMAIN)
def _embedding_bags(lower: Lowering, node: Node) -> relax.Expr:
    table, offsets, *ids = (node.inputs[k] for k in (0, *range(3, len(node.inputs))))
    assert table is not None and offsets is not None
    (total, dim), (rows, starts) = table.tensor.dims, _extents(lower, node)
    if not (isinstance(total, int) and isinstance(dim, int)):
        raise lower.unsupported("the size of its tables is known only at run time")
    bags, message = EmbeddingBags.of(node), f"graphopt: id out of range: {describe_stack(node)}"
    pooling = Pooling(
        bags.mode,
        oob=lower.oob,
        message=message,
        offsets_message=f"{message} (offsets decrease or leave the ids)",
    )
    first = ids[0]
    assert first is not None
    kernel = embedding_bags(
        total, len(ids), dim, first.dtype, offsets.dtype, pooling, bags.include_last_offset
    )
    args = [
        lower.expr(table),
        lower.constant(np.stack([starts, rows])),
        *_joined(lower, [value for value in ids if value is not None]),
        lower.expr(offsets),
    ]
    return lower.kernel(kernel, args, [(lower.shape(node.output), "float32")])[0]


def _joined(lower: Lowering, ids: list[Value]) -> list[relax.Expr]:
    """Where the ids of each field begin, and the last ones end, in all ids joined; these."""
    sizes = [int64(lower.dim(value.tensor.dims[0])) for value in ids]
    ends = list(accumulate(sizes, initial=int64(0)))

    def body(*buffers: Any) -> None:
        *sources, begins, joined = buffers
        for k, end in enumerate(ends):
            store(begins, [k], end)
        for source, size, begin in zip(sources, sizes, ends):
            with T.serial(size) as i:
                store(joined, [begin + i], source[i])

    outs = [([len(ends)], "int64"), ([ends[-1]], ids[0].dtype)]
    return loops(lower, body, [lower.expr(value) for value in ids], outs)
