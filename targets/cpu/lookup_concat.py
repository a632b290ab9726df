"""Concatenations of looked-up rows: each row goes from its table straight to its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.analysis.cost import Cost, cost_rule, dtype_bits
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


@dataclass(frozen=True)
class _Part:
    """An operand of the concatenation: a value, or the rows of `table` that a value names."""

    value: Value
    table: Value | None
    complaint: str

    @property
    def dims(self) -> tuple[Dim, ...]:
        own = self.value.tensor.dims
        return own if self.table is None else (*own, self.table.tensor.dims[1])


def _parts(node: Node) -> Iterator[_Part]:
    """Inputs of a LookupConcat, as `complaints` says: "" for a value, else for table and ids."""
    inputs = iter(value for value in node.inputs if value is not None)
    for complaint in node.attrs["complaints"]:
        table = next(inputs) if complaint else None
        yield _Part(next(inputs), table, complaint)


@type_rule("LookupConcat", domain=DOMAIN)
def _lookup_concat_type(node: Node) -> list[Type | None]:
    axis, shapes = node.attrs["axis"], [part.dims for part in _parts(node)]
    joined = sum((shape[axis] for shape in shapes[1:]), shapes[0][axis])
    return [tensor_type("float32", [*shapes[0][:axis], joined, *shapes[0][axis + 1 :]])]


@cost_rule("LookupConcat", domain=DOMAIN)
def _lookup_concat_cost(node: Node) -> Cost:
    """Float32 is read and written once; ids are read, of 4 or 8 bytes."""
    written = 4 * product(node.output.tensor.dims)
    looked_up = [part.value for part in _parts(node) if part.table is not None]
    ids = (product(v.tensor.dims) * (dtype_bits(v.dtype) // 8) for v in looked_up)
    return Cost(0, sum(ids, written), written)


def _looked_up(value: Value) -> Node | None:
    """The Gather that makes `value` of whole rows of a table for nobody else, None if none does."""
    node = value.producer
    if node is None or node.op != "Gather" or node.attr("axis") != 0 or len(value.uses) > 1:
        return None
    table, ids = node.inputs[0], node.inputs[1]
    if table is None or ids is None or table.const is None or ids.const is not None:
        return None
    return node if table.const.ndim == 2 and table.const.size else None


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
    gathers = [_looked_up(value) for value in operands]
    if all(gather is None for gather in gathers):
        return NoMatch("no operand is looked up for it alone")
    inputs: list[Value | None] = []
    complaints: list[str] = []
    for value, gather in zip(operands, gathers):
        if gather is None:
            inputs.append(value)
            complaints.append("")
        else:
            table = gather.inputs[0]
            assert table is not None
            inputs += gather.inputs
            complaints.append(out_of_range(gather, table.tensor.dims[0]))
    attrs = {"axis": axis, "complaints": complaints}
    return rw.insert("LookupConcat", inputs, attrs, domain=DOMAIN).output


RULES = (concat_to_lookup_concat,)


@lowers("LookupConcat", domain=DOMAIN)
def _lower_lookup_concat(lower: Lowering, node: Node) -> Any:
    axis, parts = node.attrs["axis"], list(_parts(node))
    widths = [int(product(part.dims[axis:])) for part in parts]  # type: ignore[arg-type]
    rows = lower.dim(product(node.output.tensor.dims[:axis]))
    args = []
    for part, width in zip(parts, widths):
        if part.table is not None:
            args.append(lower.expr(part.table))
            width //= int(part.dims[-1])  # type: ignore[arg-type]
        args.append(lower.reshape(lower.expr(part.value), [rows, width]))

    def body(*buffers: Any) -> None:
        *sources, target = buffers
        with T.serial(int64(rows)) as i:
            place, remaining = 0, iter(sources)
            for part, width in zip(parts, widths):
                source = next(remaining)
                if part.table is None:
                    _copy(target, i, place, source, i, width, None)
                else:
                    _look_up(lower, part, source, next(remaining), target, i, place)
                place += width

    (joined,) = loops(lower, body, args, [([rows, sum(widths)], "float32")])
    return lower.reshape(joined, lower.shape(node.output))


def _copy(target: Any, i: Any, place: Any, source: Any, row: Any, width: int, valid: Any) -> None:
    with T.serial(width) as j:
        store(target, [i, place + j], load(source, [row, j], valid))


def _look_up(
    lower: Lowering, part: _Part, table: Any, ids: Any, target: Any, i: Any, place: int
) -> None:
    """target[i, place:] = the rows of `table` that ids[i] names, one after the other."""
    size, width = (int(extent) for extent in table.shape)
    with T.serial(ids.shape[1]) as k:
        if size * width * 4 >= PREFETCH_BYTES:
            _prefetch(table, ids[T.min(i + PREFETCH_DISTANCE, ids.shape[0] - 1), k], size, width)
        at = T.bind(ids[i, k].astype("int64"))
        if lower.oob != "zero":
            require(bounds.is_allowed(at, size, lower.oob), part.complaint)
        valid = bounds.is_valid(at, size) if lower.oob == "zero" else None
        row = bounds.row_of(at, size, lower.oob)
        _copy(target, i, place + k * width, table, row, width, valid)


def _prefetch(table: Any, index: Any, size: int, width: int) -> None:
    """Ask for the row that `index` names; any index is harmless here."""
    row = T.max(T.min(index.astype("int64"), size - 1), T.int64(0))
    for start in range(0, width, CACHE_LINE // 4):
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
