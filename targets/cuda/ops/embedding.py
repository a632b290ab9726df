"""Embedding bags, looked up and pooled in one launch: of one table or of many, in full or coded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from tvm import relax, tirx

from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.ops import embedding_bags, quantized_embedding_bag
from graphopt.ops.embedding_bag import DOMAIN, EmbeddingBag
from graphopt.targets.cuda.kernels.embedding_bag import Field, Table, pool
from graphopt.targets.cuda.lowering import ID_ERROR, CudaLowering, lowers
from graphopt.targets.kernels.pooling import Plan, Pooling
from graphopt.targets.relax.loops import loops
from graphopt.targets.relax.lowering import int64
from graphopt.targets.relax.operands import describe, tensor_input


@lowers("EmbeddingBag", domain=DOMAIN)
def _embedding_bag(lower: CudaLowering, node: Node) -> relax.Expr:
    table, bag = tensor_input(node, 0), EmbeddingBag.of(node)
    rows, dim = table.tensor.dims
    if not isinstance(rows, int) and bag.padding_idx is None and isinstance(dim, int):
        known = 0  # a table that the model computes: only its kernel's arguments tell
    else:
        rows, dim = _extents(lower, table)
        known = rows
    weights = node.input(3)
    plan = _plan(
        lower, known, dim, table.dtype, tensor_input(node, 1), bag.mode,
        weighted=weights is not None, padding_idx=bag.padding_idx, empty=bag.empty,
        by_id=bag.by_id,
    )  # fmt: skip
    return _one_field(lower, node, plan, rows, [table], node.input(2), weights)


@lowers(quantized_embedding_bag.OP_TYPE, domain=DOMAIN)
def _quantized_embedding_bag(lower: CudaLowering, node: Node) -> relax.Expr:
    codes, scales, bits = tensor_input(node, 0), tensor_input(node, 1), node.attr("bits", 8)
    rows, width = _extents(lower, codes)
    dim = 2 * width if bits == 4 else width
    plan = _plan(
        lower, rows, dim, "float32", tensor_input(node, 2), node.attr("mode", "sum"),
        padding_idx=node.attr("padding_idx"), by_id=bool(node.attr("by_id", 0)),
    )  # fmt: skip
    return _one_field(lower, node, plan, rows, [codes, scales], node.input(3), None, bits)


@lowers(embedding_bags.OP_TYPE, domain=DOMAIN)
def _embedding_bags(lower: CudaLowering, node: Node) -> relax.Expr:
    table, offsets = tensor_input(node, 0), tensor_input(node, 3)
    ids = [tensor_input(node, k) for k in range(4, len(node.inputs))]
    total, dim = _extents(lower, table)
    rows, starts = node.const(1), node.const(2)
    if rows is None or starts is None or rows.min(initial=1) < 1:
        raise lower.unsupported("the sizes of its tables are not known, or one is empty")
    bags = embedding_bags.EmbeddingBags.of(node)
    plan = _plan(lower, total, dim, table.dtype, ids[0], bags.mode)
    for k, (value, size) in enumerate(zip(ids, rows.tolist())):
        lower.demand_rows(value, size, f"{describe(node)} (field {k}, axis of size {size})")
    lengths = [int64(lower.shape(value)[0]) for value in ids]
    width = int64(lower.shape(offsets)[1])
    _demand_offsets(lower, node, offsets, lengths, width)
    count, whole = len(ids), lower.shape(node.output)

    def body(*buffers: Any) -> None:
        source, places, *named, out = buffers
        fields = []
        for k, (index, size, start) in enumerate(zip(named, rows.tolist(), starts.tolist())):
            given = _given(_row(places, k), width, lengths[k])
            fields.append(Field(index, given, size, start))
        pool(plan, Table(source), fields, out)

    arguments = [lower.expr(value) for value in (table, offsets, *ids)]
    (found,) = loops(lower, body, arguments, [([whole[0] * count, dim], table.dtype)])
    return lower.reshape(found, whole)


def _extents(lower: CudaLowering, table: Value) -> tuple[int, int]:
    rows, width = table.tensor.dims
    if not (isinstance(rows, int) and isinstance(width, int)):
        raise lower.unsupported(f"the size of its table ({table.type}) is known only at run time")
    if rows == 0:
        raise lower.unsupported("its table has no rows")
    return rows, width


def _plan(
    lower: CudaLowering, rows: int, dim: int, dtype: str, ids: Value, mode: Any, **options: Any
) -> Plan:
    try:
        pooling = Pooling(mode, oob="zero" if lower.oob == "zero" else "clamp", **options)
        return Plan(rows, dim, dtype, ids.dtype, pooling)
    except ValueError as error:  # how kernels refuse what they have no code for
        raise lower.unsupported(str(error)) from None


def _one_field(
    lower: CudaLowering,
    node: Node,
    plan: Plan,
    rows: Dim,
    table: Sequence[Value],
    offsets: Value | None,
    weights: Value | None,
    bits: int = 8,
) -> relax.Expr:
    """Bags of one table: its values, or codes and scales."""
    ids = tensor_input(node, len(table))
    lower.demand_ids(node, ids, rows)
    extent = rows if isinstance(rows, int) else int64(lower.dim(rows))
    sizes = [int64(size) for size in lower.shape(ids)]
    number = sizes[0] if len(sizes) == 1 else sizes[0] * sizes[1]
    width = None if offsets is None else int64(lower.shape(offsets)[0])
    if offsets is not None:
        _demand_offsets(lower, node, offsets, sizes, width)
    given = [value for value in (offsets, weights) if value is not None]
    flat = [lower.reshape(lower.expr(ids), [number])]
    flat += [
        lower.reshape(lower.expr(v), [number]) if v is weights else lower.expr(v) for v in given
    ]

    def body(*buffers: Any) -> None:
        *sources, out = buffers
        rest = iter(sources)
        source = Table(next(rest), next(rest) if len(table) > 1 else None, bits)
        index = next(rest)
        places = None if offsets is None else next(rest)
        own = None if weights is None else next(rest)
        if places is None:
            bounds = _rows_of(sizes[-1])
        else:
            bounds = _given(lambda bag: places[bag], width, sizes[0])
        pool(plan, source, [Field(index, bounds, extent, weights=own)], out)

    arguments = [*map(lower.expr, table), *flat]
    return loops(lower, body, arguments, [(lower.shape(node.output), plan.dtype)])[0]


def _row(places: Any, k: int) -> Callable[[Any], Any]:
    return lambda bag: places[k, bag]


def _rows_of(length: Any) -> Callable[[Any], tuple[Any, Any]]:
    """A bag a row of `length` ids."""
    return lambda bag: (bag * length, (bag + 1) * length)


def _given(read: Callable[[Any], Any], width: Any, end: Any) -> Callable[[Any], tuple[Any, Any]]:
    """Bags between offsets, `width` of them, which are limited to [0, end) and do not decrease."""

    def bounds(bag: Any) -> tuple[Any, Any]:
        zero = int64(0)
        first = tirx.max(tirx.min(read(bag).astype("int64"), end), zero)
        following = read(tirx.min(bag + 1, width - 1)).astype("int64")
        last = tirx.Select(bag + 1 < width, tirx.min(following, end), end)
        return first, tirx.max(last, first)

    return bounds


def _demand_offsets(
    lower: CudaLowering, node: Node, offsets: Value, ends: Sequence[Any], width: Any
) -> None:
    """Report offsets that decrease or leave the ids: [bags], or [fields, bags]."""
    if lower.oob != "error":
        return
    shape = [int64(size) for size in lower.shape(offsets)]
    count = width if len(shape) == 1 else shape[0] * width
    firsts = list(accumulate((width for _ in ends[1:]), initial=int64(0)))

    def holds(k: Any, o: Any) -> Any:
        at = o(k).astype("int64")
        is_last = tirx.EQ(tirx.floormod(k, width), width - 1)
        following = o(tirx.min(k + 1, count - 1)).astype("int64")
        end = ends[-1]
        for later, own in zip(firsts[:0:-1], ends[-2::-1]):
            end = tirx.Select(k < later, own, end)
        return tirx.all(at >= 0, tirx.any(is_last, at <= following), at <= end)

    message = f"{ID_ERROR}{describe(node)} (offsets decrease or leave the ids)"
    lower.demand(holds, [lower.reshape(lower.expr(offsets), [count])], count, message)
