"""Lookups and their concatenations: each row goes from its table straight to its place.

Rows may be added, multiplied or pooled on their way, and their ids computed: see `id_arithmetic`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graphopt.ir.dims import Dim, product
from graphopt.ir.graph import Node, Value
from graphopt.ops import quantized_lookup, table_rows
from graphopt.ops.embedding_bag import EmbeddingBag
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var
from graphopt.rewrite.pattern import Pattern
from graphopt.targets.concats import joined_columns
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.id_arithmetic import UNROLLED, Ids, columns_of, ids_of
from graphopt.targets.cpu.lookup_parts import OP_TYPE, Extents, Part, Term
from graphopt.targets.relax.operands import describe_stack
from graphopt.targets.relax.ops.indexing import out_of_range

x, y = var("x"), var("y")
_COMBINED = {"Add": "add", "Mul": "mul"}
_BAG = "graphopt::EmbeddingBag"
_FLOATS = {"float32": 32, "float16": 16, "bfloat16": 16}
VIEWS = frozenset(["Reshape", "Flatten", "Squeeze", "Unsqueeze"])


@dataclass
class _Matched:
    """Rows of one or more tables, what they are made of, and the nodes that this stands for."""

    terms: tuple[Term, ...]
    inputs: list[Value]
    combined: str = ""
    pool: EmbeddingBag | None = None
    nodes: list[Node] = field(default_factory=list)


def _matched(value: Value, width: int) -> _Matched | None:
    """What looks `value` up, `width` elements at a time, if nobody else reads it."""
    node = value.producer
    views = []
    while node is not None and len(value.uses) == 1 and node.op in VIEWS:
        assert node.inputs[0] is not None
        views.append(node)
        value, node = node.inputs[0], node.inputs[0].producer
    if node is None or len(value.uses) > 1 or value.is_graph_output or value.dtype != "float32":
        return None
    found = _sum_of(node, width) if node.op in _COMBINED else _looked_up(node, width)
    if found is not None:
        found.nodes += [*views, node]
    return found


def _looked_up(node: Node, width: int) -> _Matched | None:
    """The rows that a node looks up, or that it makes float32 of if they are of half precision."""
    half = node.inputs[0] if node.op == "Cast" else None
    if half is None:
        return _bag(node, width) if node.op == _BAG else _lookup(node, width)
    if half.producer is None or len(half.uses) > 1 or half.is_graph_output:
        return None
    if half.dtype == "float32" or half.producer.op == "Cast":
        return None
    found = _looked_up(half.producer, width)
    if found is not None:
        found.nodes.append(half.producer)
    return found


def _sum_of(node: Node, width: int) -> _Matched | None:
    """Rows that a node adds or multiplies, element by element."""
    operands = node.operands
    if any(value.shape != node.output.shape for value in operands) or operands[0] is operands[1]:
        return None
    found = [part for value in operands if (part := _matched(value, width)) is not None]
    kind = _COMBINED[node.op]
    if len(found) < 2 or any(part.pool is not None for part in found):
        return None
    first, second = found
    if len({term.dim for term in (*first.terms, *second.terms)}) > 1:
        return None
    if len(second.terms) > 1:
        first, second = second, first  # exact: only the order within one sum counts
    if len(second.terms) > 1 or (len(first.terms) > 1 and first.combined != kind):
        return None
    terms, inputs = first.terms + second.terms, first.inputs + second.inputs
    return _Matched(terms, inputs, kind, nodes=first.nodes + second.nodes)


def _lookup(node: Node, width: int) -> _Matched | None:
    """The rows of a constant table that a node looks up."""
    inputs = node.operands
    if node.op == "Gather" and node.attr("axis") == 0 and inputs[0].dtype in _FLOATS:
        (*tables, ids), bits = inputs, _FLOATS[inputs[0].dtype]
    elif node.op == f"{quantized_lookup.DOMAIN}::{quantized_lookup.OP_TYPE}":
        (*tables, ids), bits = inputs, node.attr("bits", 8)
    else:
        return None
    table = tables[0].const
    if table is None or ids.const is not None or table.ndim != 2 or not table.size:
        return None
    dim = table.shape[1] * (2 if bits == 4 else 1)
    if width % dim or ids.dtype not in ("int32", "int64"):
        return None
    stacked = _stacked(ids, width // dim)
    extents, complaint = None, out_of_range(node, len(table))
    covered: Sequence[Node] = ()
    if stacked is not None:
        ids, extents, covered = stacked
        complaint = f"graphopt: id out of range: {describe_stack(covered[0])}"
    found = ids_of(ids, width // dim)
    return _matched_term(bits, dim, width // dim, tables, found, complaint, extents, covered)


def _bag(node: Node, width: int) -> _Matched | None:
    """The rows of a constant table that a node adds up or compares, one bag a row."""
    table, ids = node.inputs[0], node.inputs[1]
    if len(node.inputs) != 2 or table is None or ids is None or ids.const is not None:
        return None
    length = ids.tensor.dims[1]
    if table.const is None or not table.const.size or table.dtype not in _FLOATS:
        return None
    if not isinstance(length, int) or not length or table.const.shape[1] != width:
        return None
    found = ids_of(ids, length, literals=False)
    complaint, bits = out_of_range(node, len(table.const)), _FLOATS[table.dtype]
    matched = _matched_term(bits, width, length, [table], found, complaint)
    matched.pool = EmbeddingBag.of(node)
    return matched


def _matched_term(
    bits: int,
    dim: int,
    columns: int,
    tables: list[Value],
    ids: Ids,
    complaint: str,
    extents: Extents | None = None,
    covered: Sequence[Node] = (),
) -> _Matched:
    widths = tuple(source.width for source in ids.sources)
    shared = tuple(source.shared for source in ids.sources)
    term = Term(bits, dim, columns, ids.expression, widths, shared, complaint, extents)
    inputs = [*tables, *(source.value for source in ids.sources)]
    return _Matched((term,), inputs, nodes=[*ids.nodes, *covered])


def _stacked(ids: Value, columns: int) -> tuple[Value, Extents, list[Node]] | None:
    """The ids of single tables of which a TableRows made `ids`, one table for each column."""
    node = ids.producer
    if node is None or node.op != f"{table_rows.DOMAIN}::{table_rows.OP_TYPE}":
        return None
    own, rows, starts = node.inputs[0], node.const(1), node.const(2)
    if own is None or rows is None or starts is None or rows.min(initial=1) < 1:
        return None
    if len(rows) != columns or columns > UNROLLED:
        return None
    return own, Extents(tuple(starts.tolist()), tuple(rows.tolist())), [node]


def _copied(value: Value, width: int, rows: Dim) -> tuple[list[Part], list[Value], list[Node]]:
    """The parts that a value stands for: columns of a matrix, or what was joined before."""
    taken, source, views = columns_of(value), value, []
    if taken is not None and taken[0].tensor.dims[0] == rows and taken[0].dtype == "float32":
        matrix, start = taken
        assert value.producer is not None
        return [Part(width, start=start, source=_width(matrix))], [matrix], [value.producer]
    while source.producer is not None and source.producer.op in VIEWS and len(source.uses) == 1:
        views.append(source.producer)
        assert source.producer.inputs[0] is not None
        source = source.producer.inputs[0]
    node = source.producer
    if node is None or node.op != f"{DOMAIN}::{OP_TYPE}" or len(source.uses) > 1:
        return [Part(width, source=width)], [value], []
    if node.attrs["rows"] != rows or "summed" in node.attrs:
        return [Part(width, source=width)], [value], []
    return node.attrs["parts"], node.operands, [*views, node]


def _width(matrix: Value) -> int:
    width = matrix.tensor.dims[1]
    assert isinstance(width, int)
    return width


def _insert(rw: Rewriter, axis: int, operands: list[Value], found: list[_Matched | None]) -> Value:
    """The op that joins `operands` along `axis`, those that were `found` as lookups."""
    root, parts, inputs = rw.root, [], []
    nodes = [root]
    for operand, rows in zip(operands, found):
        width = product(operand.tensor.dims[axis:])
        assert isinstance(width, int)
        if rows is None:
            own, given, covered = _copied(operand, width, product(root.output.tensor.dims[:axis]))
            parts += own
            inputs += given
            nodes += covered
        else:
            parts.append(Part(width, rows.terms, rows.combined, rows.pool))
            inputs += rows.inputs
            nodes += rows.nodes
    shape = root.output.tensor.dims
    attrs = {"parts": parts, "rows": product(shape[:axis]), "shape": shape}
    origin = dict.fromkeys(name for node in nodes for name in node.origin)
    return rw.insert(OP_TYPE, inputs, attrs, domain=DOMAIN, origin=tuple(origin)).output


@rule(op.Concat(x, ...))
def concat_to_lookup_concat(rw: Rewriter, node: Node) -> Value | NoMatch:
    """Concat(Gather(t, i), v) -> LookupConcat(t, i, v)"""
    columns = joined_columns(node)
    if isinstance(columns, NoMatch):
        return columns
    pairs = list(zip(columns.operands, columns.widths))
    found = [_matched(value, width) for value, width in pairs]
    rows = product(node.output.tensor.dims[: columns.axis])
    joined = (part for value, width in pairs for part in _copied(value, width, rows)[0])
    if not any(found) and not any(part.terms for part in joined):
        return NoMatch("no operand is looked up for it alone")
    return _insert(rw, columns.axis, columns.operands, found)


def _first_axis(value: Value) -> int:
    """From which axis on the rows of `value` that are written together lie."""
    dims = value.tensor.dims
    return len(dims) - (2 if len(dims) > 2 and isinstance(dims[-2], int) else 1)


def _alone(rw: Rewriter, node: Node, found: _Matched | None) -> Value | NoMatch:
    if found is None:
        return NoMatch("it does not look up rows of constant tables of float32 for it alone")
    return _insert(rw, _first_axis(node.output), [node.output], [found])


@rule(
    op.Gather(x, y),
    Pattern(quantized_lookup.OP_TYPE, (x, var("scales"), y), domain="graphopt"),
    Pattern("EmbeddingBag", (x, y), domain="graphopt"),
)
def lookup_of_computed_ids(rw: Rewriter, node: Node) -> Value | NoMatch:
    """Gather(t, Mod(i, 9)) -> LookupConcat(t, i)"""
    if node.output.dtype != "float32" or not node.output.rank:
        return NoMatch("not float32, or of unknown rank")
    width = product(node.output.tensor.dims[_first_axis(node.output) :])
    look_up = _bag if node.op == _BAG else _lookup
    found = look_up(node, width) if isinstance(width, int) and width else None
    if found is not None and not found.nodes:
        return NoMatch("its ids are not computed")
    return _alone(rw, node, found)


@rule(op.Mul(x, y), op.Add(x, y))
def sum_to_lookup(rw: Rewriter, node: Node) -> Value | NoMatch:
    """Mul(Gather(t, i), Gather(u, j)) -> LookupConcat(t, i, u, j)"""
    if node.output.dtype != "float32" or not node.output.rank:
        return NoMatch("not float32, or of unknown rank")
    width = product(node.output.tensor.dims[_first_axis(node.output) :])
    if not isinstance(width, int) or not width:
        return NoMatch("the width of its operands is known only at run time")
    users = [use.user for use in node.output.uses]
    longer = isinstance(users[0], Node) and users[0].op in _COMBINED and len(users) == 1
    if longer and _sum_of(users[0], width) is not None:  # type: ignore[arg-type]
        return NoMatch("it is part of a longer sum")
    return _alone(rw, node, _sum_of(node, width))


@rule(op.Cast(x))
def lookup_of_halves(rw: Rewriter, node: Node) -> Value | NoMatch:
    """Cast(Gather(t, i)) -> LookupConcat(t, i), t being of half precision"""
    if node.output.dtype != "float32" or not node.output.rank:
        return NoMatch("not float32, or of unknown rank")
    width = product(node.output.tensor.dims[_first_axis(node.output) :])
    found = _looked_up(node, width) if isinstance(width, int) and width else None
    return _alone(rw, node, found)


CONCATENATED = (concat_to_lookup_concat,)
COMBINED = (sum_to_lookup,)
COMPUTED = (lookup_of_computed_ids, lookup_of_halves)
