"""Lookups, alone or concatenated: each row goes from its table straight to its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from graphopt.analysis.cost import Cost, cost_rule, dtype_bits
from graphopt.analysis.lookups import Lookup, lookup_in, lookup_rule, lookups_in_pieces
from graphopt.ir.dims import product
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import tensor_type, type_rule
from graphopt.ir.types import Type
from graphopt.ops import product_lookup, quantized_lookup, table_rows
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var
from graphopt.rewrite.pattern import Pattern
from graphopt.targets.concats import joined_columns
from graphopt.targets.cuda import DOMAIN
from graphopt.targets.cuda.kernels import lookup
from graphopt.targets.cuda.lowering import ID_ERROR, CudaLowering, lowers
from graphopt.targets.kernels import bounds
from graphopt.targets.relax.loops import loops
from graphopt.targets.relax.lowering import int64
from graphopt.targets.relax.operands import describe, describe_stack

x, table, ids = var("x"), var("table"), var("ids")
_OPERANDS = {"value": 1, "rows": 2, "codes": 3, "books": 3}
_VIEWS = frozenset(["Reshape", "Flatten", "Squeeze", "Unsqueeze"])
# Ops that TVM merges an elementwise lookup into, one element of theirs at a time.
_MERGE = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Cast",
        "Relu",
        "Sigmoid",
        "Tanh",
        "Where",
        "ReduceSum",
        "ReduceMean",
    ]
)


@dataclass(frozen=True)
class _Part:
    """An operand of a concatenation: a value, or rows that `ids` name.

    Attributes:
        kind: "value", "rows" of a table, "codes" of one, or codes of rows of "books".
        stacked: True where the table holds several, one for each id of a row.
        operands: the value; or the table, codes and scales, or codes and books, and the ids; if
            stacked, then how many rows each table has and where it begins.
        bits: of a code.
        complaint: what is said of an id that its table does not have.
    """

    kind: str
    operands: tuple[Value, ...]
    stacked: bool = False
    bits: int = 0
    complaint: str = ""

    @property
    def ids(self) -> Value:
        return self.operands[_OPERANDS[self.kind] - 1]

    @property
    def dim(self) -> int:
        """Columns of the rows looked up."""
        width = self.operands[0].tensor.dims[1]
        part = self.operands[1].tensor.dims[1] if self.kind == "books" else 1
        assert isinstance(width, int) and isinstance(part, int)
        width *= part
        return 2 * width if self.bits == 4 else width


def _parts(node: Node) -> Iterator[_Part]:
    """The parts of a Lookup, in order."""
    inputs = iter(value for value in node.inputs if value is not None)
    attrs = (node.attrs[name] for name in ("kinds", "stacked", "bits", "complaints"))
    for kind, stacked, bits, complaint in zip(*attrs):
        count = _OPERANDS[kind] + (2 if stacked else 0)
        yield _Part(kind, tuple(next(inputs) for _ in range(count)), bool(stacked), bits, complaint)


@type_rule("Lookup", domain=DOMAIN)
def _lookup_type(node: Node) -> list[Type | None]:
    return [tensor_type("float32", node.attrs["shape"])]


@cost_rule("Lookup", domain=DOMAIN)
def _lookup_cost(node: Node) -> Cost:
    """Values, and what lookups take, are read and written once."""
    written = 4 * product(node.output.tensor.dims)
    values = (part.operands[0] for part in _parts(node) if part.kind == "value")
    copied = sum((4 * product(value.tensor.dims) for value in values), 0)
    moved = sum((found.moved for found in _lookups(node)), 2 * copied)
    return Cost(0, moved - written, written)


@lookup_rule("Lookup", domain=DOMAIN)
def _lookups(node: Node) -> Iterator[Lookup]:
    for part in _parts(node):
        if part.kind == "value":
            continue
        table = part.operands[0]
        if part.stacked:
            rows, starts = (value.const for value in part.operands[-2:])
            assert rows is not None and starts is not None
            yield from lookups_in_pieces(table, part.ids, rows.tolist(), starts.tolist())
        else:
            yield lookup_in(table, part.ids, part.bits or dtype_bits(table.dtype))


# --------------------------------------------------------------------- matching


def _looked_up(value: Value) -> _Part | None:
    """The part that `value` is, if nobody else reads the rows that it is made of."""
    node = value.producer
    while node is not None and len(value.uses) == 1 and node.op in _VIEWS:
        assert node.inputs[0] is not None
        value, node = node.inputs[0], node.inputs[0].producer
    if node is None or len(value.uses) > 1:
        return None
    if node.op == "Cast" and value.dtype == "float32" and node.inputs[0] is not None:
        inner = node.inputs[0].producer
        half = node.inputs[0].dtype == "float16" and len(node.inputs[0].uses) == 1
        return _part_of(inner) if inner is not None and half else None
    return _part_of(node) if value.dtype == "float32" else None


def _part_of(node: Node) -> _Part | None:
    """What a Gather, QuantizedLookup or ProductLookup of whole rows looks up."""
    source, found = node.inputs[0] if node.inputs else None, None
    if source is None or source.const is None or source.rank != 2 or not source.const.size:
        return None
    complaint = f"{describe(node)} (axis of size {source.tensor.dims[0]})"
    if node.op == "Gather" and node.attr("axis") == 0 and source.dtype in ("float16", "float32"):
        found = _Part("rows", (source, _value(node, 1)), complaint=complaint)
    elif node.op == f"{quantized_lookup.DOMAIN}::{quantized_lookup.OP_TYPE}":
        operands = (source, _value(node, 1), _value(node, 2))
        found = _Part("codes", operands, bits=node.attr("bits", 8), complaint=complaint)
    elif node.op == f"{product_lookup.DOMAIN}::{product_lookup.OP_TYPE}":
        operands = (source, _value(node, 1), _value(node, 2))
        width = operands[1].tensor.dims[1]
        found = _Part("books", operands, complaint=complaint) if isinstance(width, int) else None
    if found is None or found.ids.const is not None or not found.ids.rank:
        return None
    return _with_tables(found)


def _with_tables(part: _Part) -> _Part:
    """The part, its ids those of the single tables where a TableRows made them."""
    node = part.ids.producer
    if node is None or node.op != f"{table_rows.DOMAIN}::{table_rows.OP_TYPE}":
        return part
    rows, starts = node.const(1), node.const(2)
    if rows is None or starts is None or rows.min(initial=1) < 1:
        return part
    operands = (*part.operands[:-1], *(_value(node, k) for k in range(3)))
    return _Part(part.kind, operands, True, part.bits, describe_stack(node))


def _value(node: Node, index: int) -> Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _insert(rw: Rewriter, parts: list[_Part], widths: list[int], axis: int) -> Value:
    inputs = [value for part in parts for value in part.operands]
    shape = rw.root.output.tensor.dims
    attrs: dict[str, Any] = {
        "kinds": [part.kind for part in parts],
        "stacked": [int(part.stacked) for part in parts],
        "bits": [part.bits for part in parts],
        "complaints": [part.complaint for part in parts],
        "widths": widths,
        "rows": product(shape[:axis]),
        "shape": shape,
    }
    return rw.insert("Lookup", inputs, attrs, domain=DOMAIN).output


@rule(op.Concat(x, ...))
def concat_to_lookup(rw: Rewriter, node: Node) -> Value | NoMatch:
    """Concat(Gather(t, i), v) -> Lookup(t, i, v)"""
    columns = joined_columns(node)
    if isinstance(columns, NoMatch):
        return columns
    operands, widths = columns.operands, columns.widths
    if not all(widths):
        return NoMatch("an operand has no width")
    parts = [_looked_up(value) or _Part("value", (value,)) for value in operands]
    if all(part.kind == "value" for part in parts):
        return NoMatch("no operand is looked up for it alone")
    if any(width % part.dim for width, part in zip(widths, parts) if part.kind != "value"):
        return NoMatch("it concatenates parts of rows")
    return _insert(rw, parts, widths, columns.axis)


@rule(
    op.Gather(table, ids),
    Pattern(quantized_lookup.OP_TYPE, (table, var("scales"), ids), domain=quantized_lookup.DOMAIN),
    Pattern(product_lookup.OP_TYPE, (table, var("books"), ids), domain=product_lookup.DOMAIN),
)
def gather_to_lookup(rw: Rewriter, node: Node) -> Value | NoMatch:
    """Gather(t, i) -> Lookup(t, i)"""
    part = _part_of(node)
    if part is None or node.output.dtype != "float32":
        return NoMatch("it does not look whole rows of a constant table up as float32")
    users = [use.user for use in node.output.uses]
    merges = len(users) == 1 and isinstance(users[0], Node) and users[0].op in _MERGE
    if part.kind == "rows" and not part.stacked and merges:
        return NoMatch("it becomes a part of the one kernel that reads it")
    return _insert(rw, [part], [part.dim], part.ids.tensor.rank or 0)


CONCATENATED = (concat_to_lookup,)
ALONE = (gather_to_lookup,)


# --------------------------------------------------------------------- lowering


@lowers("Lookup", domain=DOMAIN)
def _lower_lookup(lower: CudaLowering, node: Node) -> relax.Expr:
    parts, widths, rows = list(_parts(node)), node.attrs["widths"], node.attrs["rows"]
    count = lower.dim(rows)
    arguments: list[relax.Expr] = []
    places = []
    for part, width in zip(parts, widths):
        places.append(len(arguments))
        if part.kind == "value":
            arguments.append(lower.reshape(lower.expr(part.operands[0]), [count, width]))
            continue
        arguments += [lower.expr(value) for value in part.operands[: _OPERANDS[part.kind] - 1]]
        arguments.append(lower.reshape(lower.expr(part.ids), [count, width // part.dim]))
        if part.stacked:
            arguments.append(_extents(lower, part))
        _demand(lower, part)
    given = [lower.is_given(argument) for argument in arguments]

    def body(*buffers: Any) -> None:
        firsts = accumulate(widths, initial=0)
        emitted = []
        for part, at, place in zip(parts, places, firsts):
            own = buffers[at : at + _OPERANDS[part.kind] + part.stacked]
            if part.kind == "value":
                emitted.append(lookup.Part(own[0], place, aligned=not given[at]))
                continue
            extents = own[-1] if part.stacked else None
            named = own[_OPERANDS[part.kind] - 1]
            scales, books = (own[1] if part.kind == kind else None for kind in ("codes", "books"))
            emitted.append(lookup.Part(own[0], place, named, scales, books, extents, part.bits))
        lookup.lookup(emitted, buffers[-1], lower.oob)

    (found,) = loops(lower, body, arguments, [([count, sum(widths)], "float32")])
    return lower.reshape(found, lower.shape(node.output))


def _extents(lower: CudaLowering, part: _Part) -> relax.Expr:
    rows, starts = (value.const for value in part.operands[-2:])
    assert rows is not None and starts is not None
    return lower.constant(np.stack([starts, rows]))


def _demand(lower: CudaLowering, part: _Part) -> None:
    """Report ids that their tables do not have."""
    size = part.operands[0].tensor.dims[0]
    if not part.stacked:
        lower.demand_rows(part.ids, size, part.complaint)
        return
    if lower.oob != "error":
        return
    count = lower.dim(product(part.ids.tensor.dims))
    fields = int64(part.ids.tensor.dims[-1])

    def holds(k: Any, i: te.Tensor, extents: te.Tensor) -> Any:
        index = i(k).astype("int64")
        return bounds.is_valid(index, extents(1, tirx.floormod(k, fields)))

    if lower.first_demand(part.ids, part.complaint):
        flat = lower.reshape(lower.expr(part.ids), [count])
        lower.demand(holds, [flat, _extents(lower, part)], count, f"{ID_ERROR}{part.complaint}")
