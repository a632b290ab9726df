"""Lookups of our own, by CPU kernels that pool or dequantize in one go."""

from __future__ import annotations

from tvm import relax, tirx

from graphopt.ir import dims
from graphopt.ir.graph import Node, Value
from graphopt.ops import product_embedding_bag as product_bag_op
from graphopt.ops import product_lookup as product_op
from graphopt.ops import quantized_embedding_bag as bag_op
from graphopt.ops import quantized_lookup as lookup_op
from graphopt.ops.embedding_bag import DOMAIN, EmbeddingBag
from graphopt.targets.cpu.kernels.coded_bag import CodedPooling, coded_bag, coded_fixed_bag
from graphopt.targets.cpu.kernels.embedding_bag import embedding_bag, fixed_bag
from graphopt.targets.cpu.kernels.product_lookup import product_lookup
from graphopt.targets.cpu.kernels.quantized_lookup import quantized_lookup
from graphopt.targets.kernels.pooling import Pooling
from graphopt.targets.relax.lowering import Lowering, compute, lowers
from graphopt.targets.relax.scalar import cast


@lowers("EmbeddingBag", domain=DOMAIN)
def _embedding_bag(lower: Lowering, node: Node) -> relax.Expr:
    table, ids = node.inputs[:2]
    assert table is not None and ids is not None
    rows, dim = table.tensor.dims
    padded = EmbeddingBag.of(node).padding_idx is not None
    if not isinstance(dim, int) or (padded and not isinstance(rows, int)):
        raise lower.unsupported(f"the size of its table ({table.type}) is known only at run time")
    try:
        kernel = _kernel(lower, node, rows if isinstance(rows, int) else None, dim)
    except ValueError as error:  # how kernels refuse what they have no code for
        raise lower.unsupported(str(error)) from None
    others = [lower.expr(value) for value in node.inputs[1:] if value is not None]
    arguments, shape = [lower.moved(table), *others], lower.shape(node.output)
    if table.dtype != "bfloat16":
        return lower.kernel(kernel, arguments, [(shape, table.dtype)])[0]
    (pooled,) = lower.kernel(kernel, arguments, [(shape, "float32")])
    return lower.te(lambda x: compute(x.shape, lambda *i: cast(x(*i), "bfloat16"), "round"), pooled)


def _kernel(lower: Lowering, node: Node, rows: int | None, dim: int) -> tirx.PrimFunc:
    bag = EmbeddingBag.of(node)
    table, ids = node.inputs[:2]
    assert table is not None and ids is not None
    name = f"EmbeddingBag {node.where[0]}"
    size = "computed size" if rows is None else f"size {rows}"
    pooling = Pooling(
        bag.mode,
        weighted=node.input(3) is not None,
        padding_idx=bag.padding_idx,
        empty=bag.empty,
        by_id=bag.by_id,
        oob=lower.oob,
        message=f"graphopt: id out of range: {name} (axis of {size})",
        offsets_message=f"graphopt: id out of range: {name} (offsets decrease or leave the ids)",
    )
    offsets, params = node.input(2), node.attrs.get("params")
    if offsets is not None:
        csr = bag.include_last_offset
        return embedding_bag(rows, dim, table.dtype, ids.dtype, offsets.dtype, pooling, csr, params)
    length = ids.tensor.dims[1]
    known = length if isinstance(length, int) else None
    return fixed_bag(rows, dim, known, table.dtype, ids.dtype, pooling, params)


@lowers(lookup_op.OP_TYPE, domain=DOMAIN)
def _quantized_lookup(lower: Lowering, node: Node) -> relax.Expr:
    codes, scales, ids = node.inputs
    assert codes is not None and scales is not None and ids is not None
    rows, width = _known_size(lower, codes)
    bits, message = node.attr("bits", 8), _out_of_range(node, rows)
    kernel = quantized_lookup(rows, width, bits, scales.dtype, ids.dtype, lower.oob, message)
    return _rows(lower, node, kernel, codes, scales, ids)


@lowers(product_op.OP_TYPE, domain=DOMAIN)
def _product_lookup(lower: Lowering, node: Node) -> relax.Expr:
    codes, books, ids = node.inputs
    assert codes is not None and books is not None and ids is not None
    rows, parts = _known_size(lower, codes)
    _, width = _known_size(lower, books)
    message = _out_of_range(node, rows)
    kernel = product_lookup(rows, parts, width, books.dtype, ids.dtype, lower.oob, message)
    return _rows(lower, node, kernel, codes, books, ids)


def _known_size(lower: Lowering, table: Value) -> tuple[int, int]:
    rows, width = table.tensor.dims
    if not (isinstance(rows, int) and isinstance(width, int)):
        raise lower.unsupported(f"the size of its table ({table.type}) is known only at run time")
    return rows, width


def _out_of_range(node: Node, rows: int) -> str:
    return f"graphopt: id out of range: {node.op_type} {node.where[0]} (axis of size {rows})"


def _rows(
    lower: Lowering, node: Node, kernel: tirx.PrimFunc, codes: Value, other: Value, ids: Value
) -> relax.Expr:
    """Rows for ids of any shape from a kernel that takes a list of them."""
    count = lower.dim(dims.product(ids.tensor.dims))
    flat = lower.reshape(lower.expr(ids), [count])
    args = [lower.expr(codes), lower.expr(other), flat]
    (found,) = lower.kernel(kernel, args, [([count, node.output.tensor.dims[-1]], "float32")])
    return lower.reshape(found, lower.shape(node.output))


@lowers(bag_op.OP_TYPE, domain=DOMAIN)
def _quantized_embedding_bag(lower: Lowering, node: Node) -> relax.Expr:
    return _coded_bag(lower, node, node.attr("bits", 8), 1)


@lowers(product_bag_op.OP_TYPE, domain=DOMAIN)
def _product_embedding_bag(lower: Lowering, node: Node) -> relax.Expr:
    books = node.inputs[1]
    assert books is not None
    return _coded_bag(lower, node, 0, _known_size(lower, books)[1])


def _coded_bag(lower: Lowering, node: Node, bits: int, part: int) -> relax.Expr:
    """Bags over codes with scales, or over codes of parts of some elements in codebooks."""
    codes, keys, ids = node.inputs[:3]
    assert codes is not None and keys is not None and ids is not None
    rows, width = _known_size(lower, codes)
    name = f"graphopt: id out of range: {node.op_type} {node.where[0]}"
    pooling = CodedPooling(
        rows,
        width,
        bits,
        keys.dtype,
        ids.dtype,
        part,
        node.attr("mode", "sum") == "mean",
        lower.oob,
        f"{name} (axis of size {rows})",
        f"{name} (offsets decrease or leave the ids)",
        node.attr("padding_idx"),
    )
    offsets = node.input(3)
    if offsets is not None:
        csr = bool(node.attr("include_last_offset", 0))
        kernel = coded_bag(pooling, offsets.dtype, csr)
    else:
        length = ids.tensor.dims[1]
        kernel = coded_fixed_bag(pooling, length if isinstance(length, int) else None)
    args = [lower.expr(value) for value in node.inputs if value is not None]
    return lower.kernel(kernel, args, [(lower.shape(node.output), "float32")])[0]
