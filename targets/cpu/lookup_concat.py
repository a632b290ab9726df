"""Concatenations of looked-up rows: each row goes from its table straight to its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.analysis.cost import Cost, cost_rule
from graphopt.analysis.lookups import Lookup, lookup_in, lookup_rule
from graphopt.ir.dims import Dim, product
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.kernels.rows import CACHE_LINE, PREFETCH_BYTES, PREFETCH_DISTANCE
from graphopt.targets.kernels import bounds
from graphopt.targets.relax.loops import loops, require, store
from graphopt.targets.relax.lowering import Lowering, int64, lowers
from graphopt.targets.relax.ops.indexing import load, out_of_range

x = var("x")
_LANES = 16  # codes restored at once


@dataclass(frozen=True)
class _Part:
    """An operand of the concatenation: a value, or the rows of `table` that a value names.

    Attributes:
        bits: of an element of the table; those of 4 and 8 bits are codes, with a scale per row.
        complaint: what is said of an id that the table does not have.
    """

    value: Value
    table: Value | None = None
    scales: Value | None = None
    bits: int = 32
    complaint: str = ""

    @property
    def dims(self) -> tuple[Dim, ...]:
        own = self.value.tensor.dims
        if self.table is None:
            return own
        return (*own, self.table.tensor.dims[1] * (2 if self.bits == 4 else 1))

    @property
    def inputs(self) -> list[Value]:
        return [v for v in (self.table, self.scales, self.value) if v is not None]


def _parts(node: Node) -> Iterator[_Part]:
    """The operands of a LookupConcat; `bits` says of each what it is: 0 for a value."""
    inputs = iter(value for value in node.inputs if value is not None)
    for bits, complaint in zip(node.attrs["bits"], node.attrs["complaints"]):
        table = next(inputs) if bits else None
        scales = next(inputs) if bits in (4, 8) else None
        yield _Part(next(inputs), table, scales, bits, complaint)


@type_rule("LookupConcat", domain=DOMAIN)
def _lookup_concat_type(node: Node) -> list[Type | None]:
    axis, shapes = node.attrs["axis"], [part.dims for part in _parts(node)]
    joined = sum((shape[axis] for shape in shapes[1:]), shapes[0][axis])
    return [tensor_type("float32", [*shapes[0][:axis], joined, *shapes[0][axis + 1 :]])]


@cost_rule("LookupConcat", domain=DOMAIN)
def _lookup_concat_cost(node: Node) -> Cost:
    """Values, and what lookups take, are read and written once."""
    written = 4 * product(node.output.tensor.dims)
    copied = (4 * product(p.value.tensor.dims) for p in _parts(node) if p.table is None)
    moved = sum((found.moved for found in _lookups(node)), 2 * sum(copied, 0))
    return Cost(0, moved - written, written)


@lookup_rule("LookupConcat", domain=DOMAIN)
def _lookups(node: Node) -> list[Lookup]:
    return [lookup_in(p.table, p.value, p.bits) for p in _parts(node) if p.table is not None]


def _part(rw: Rewriter, value: Value) -> _Part:
    """An operand of a Concat: whole rows of a table if they are looked up for nobody else."""
    whole = _Part(value)
    node, reshaped = value.producer, None
    if node is not None and node.op == "Reshape" and len(value.uses) == 1:
        node, reshaped = node.inputs[0].producer, node  # type: ignore[union-attr]
    if node is None or len(node.output.uses) > 1 or node.output.is_graph_output:
        return whole
    inputs = [v for v in node.inputs if v is not None]
    if node.op == "Gather" and node.attr("axis") == 0:
        (table, ids), scales, bits = inputs, None, 32
    elif node.op == "graphopt::QuantizedLookup":
        (table, scales, ids), bits = inputs, node.attr("bits", 8)  # type: ignore[assignment]
    else:
        return whole
    if table.const is None or ids.const is not None or table.const.ndim != 2:
        return whole
    if reshaped is not None:
        ids = _named_by(rw, ids, value, node.output)  # type: ignore[assignment]
    if not table.const.size or ids is None:
        return whole
    return _Part(ids, table, scales, bits, out_of_range(node, table.tensor.dims[0]))


def _named_by(rw: Rewriter, ids: Value, reshaped: Value, rows: Value) -> Value | None:
    """`ids`, shaped as the rows of `reshaped` are; None if these are not the rows looked up."""
    *lead, dim = reshaped.tensor.dims if reshaped.rank else (0, 0)
    unknown = [not isinstance(size, int) for size in lead]
    if not lead or dim != rows.tensor.dims[-1] or sum(unknown) > 1:
        return None
    sizes = [-1 if free else int(size) for size, free in zip(lead, unknown)]  # type: ignore
    return rw.op.Reshape(ids, rw.const(np.array(sizes, np.int64)))


@rule(op.Concat(x, ...))
def concat_to_lookup_concat(rw: Rewriter, node: Node) -> Value | NoMatch:
    """Concat(Gather(t, i), v) -> LookupConcat(t, i, v)"""
    operands = [value for value in node.inputs if value is not None]
    shapes = [value.shape for value in operands]
    if node.output.dtype != "float32" or any(shape is None for shape in shapes):
        return NoMatch("not float32, or of unknown rank")
    axis = node.attr("axis") % (node.output.rank or 1)
    if len({shape[:axis] + shape[axis + 1 :] for shape in shapes if shape is not None}) > 1:
        return NoMatch("whether its operands agree is known only at run time")
    if not all(isinstance(product(v.tensor.dims[axis:]), int) for v in operands):
        return NoMatch("the width of an operand is known only at run time")
    parts = [_part(rw, value) for value in operands]
    if all(part.table is None for part in parts):
        return NoMatch("no operand is looked up for it alone")
    attrs = {
        "axis": axis,
        "bits": [0 if part.table is None else part.bits for part in parts],
        "complaints": [part.complaint for part in parts],
    }
    inputs = [value for part in parts for value in part.inputs]
    return rw.insert("LookupConcat", inputs, attrs, domain=DOMAIN).output


RULES = (concat_to_lookup_concat,)


@lowers("LookupConcat", domain=DOMAIN)
def _lower_lookup_concat(lower: Lowering, node: Node) -> Any:
    axis, parts = node.attrs["axis"], list(_parts(node))
    widths = [int(product(part.dims[axis:])) for part in parts]  # type: ignore[arg-type]
    rows = lower.dim(product(node.output.tensor.dims[:axis]))
    args = []
    for part, width in zip(parts, widths):
        args += [lower.expr(v) for v in (part.table, part.scales) if v is not None]
        if part.table is not None:
            width //= int(part.dims[-1])  # type: ignore[arg-type]
        args.append(lower.reshape(lower.expr(part.value), [rows, width]))

    def body(*buffers: Any) -> None:
        *sources, target = buffers
        with T.serial(int64(rows)) as i:
            place, remaining = 0, iter(sources)
            for part, width in zip(parts, widths):
                given = [next(remaining) for _ in part.inputs]
                if part.table is None:
                    _copy(target, i, place, given[0], i, width, None)
                else:
                    _look_up(lower, part, given, target, i, place)
                place += width

    (joined,) = loops(lower, body, args, [([rows, sum(widths)], "float32")])
    return lower.reshape(joined, lower.shape(node.output))


def _copy(target: Any, i: Any, place: Any, source: Any, row: Any, width: int, valid: Any) -> None:
    with T.serial(width) as j:
        store(target, [i, place + j], load(source, [row, j], valid))


def _restore(
    target: Any, i: Any, place: Any, codes: Any, scale: Any, row: Any, bits: int, valid: Any
) -> None:
    """target[i, place:] = a row of codes times `scale`."""
    width = int(codes.shape[1])
    for start in range(0, width, _LANES):
        with T.vectorized(min(_LANES, width - start)) as lane:
            code, j = load(codes, [row, start + lane], valid), place + start + lane
            if bits == 8:
                store(target, [i, j], code.astype("float32") * scale)
            else:
                byte = code.astype("int32")
                store(target, [i, j], ((byte & 15) - 8).astype("float32") * scale)
                store(target, [i, width + j], ((byte >> 4) - 8).astype("float32") * scale)


def _look_up(
    lower: Lowering, part: _Part, given: Sequence[Any], target: Any, i: Any, place: int
) -> None:
    """target[i, place:] = the rows of the table that ids[i] names, one after the other."""
    table, ids = given[0], given[-1]
    size, width = (int(extent) for extent in table.shape)
    dim = int(part.dims[-1])  # type: ignore[arg-type]
    element = 1 if part.scales is not None else 4
    with T.serial(ids.shape[1]) as k:
        if size * width * element >= PREFETCH_BYTES:
            ahead = ids[T.min(i + PREFETCH_DISTANCE, ids.shape[0] - 1), k]
            _prefetch(table, ahead, size, width, element)
            if part.scales is not None:
                _prefetch(given[1], ahead, size, 1, element)
        at = T.bind(ids[i, k].astype("int64"))
        if lower.oob != "zero":
            require(bounds.is_allowed(at, size, lower.oob), part.complaint)
        valid = bounds.is_valid(at, size) if lower.oob == "zero" else None
        row = bounds.row_of(at, size, lower.oob)
        if part.scales is None:
            _copy(target, i, place + k * dim, table, row, width, valid)
        else:
            scale = T.bind(load(given[1], [row], valid).astype("float32"))
            _restore(target, i, place + k * dim, table, scale, row, part.bits, valid)


def _prefetch(table: Any, index: Any, size: int, width: int, element: int) -> None:
    """Ask for the row that `index` names; any index is harmless here."""
    row = T.max(T.min(index.astype("int64"), size - 1), T.int64(0))
    for start in range(0, width, CACHE_LINE // element):
        T.evaluate(
            tirx.call_llvm_intrin(
                "void",
                "llvm.prefetch",
                table.access_ptr("r", offset=row * width + start),
                T.int32(0),  # for reading
                T.int32(3),  # into every level
                T.int32(1),  # of the data cache
            )
        )
