"""Embedding tables in half precision, 8 bits, 4 bits, or parts out of codebooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from graphopt.ir.graph import Attr, Graph, Node, Value
from graphopt.ir.types import dtype_to_numpy
from graphopt.ops import (
    product_embedding_bag,
    product_lookup,
    quantized_embedding_bag,
    quantized_lookup,
)
from graphopt.ops.coded_bags import attributes_of
from graphopt.ops.embedding_bag import EmbeddingBag
from graphopt.ops.quantized_lookup import DOMAIN, packed
from graphopt.passes._bands import Bands, bands_of
from graphopt.passes._codebooks import MIN_ROWS, Codebooks, is_available
from graphopt.passes._inline import replace
from graphopt.passes._rounding import RoundedRows
from graphopt.passes._row_maps import row_reads
from graphopt.pipeline.base import LossyPass, PassContext, Proposal
from graphopt.rewrite import Rewriter

_NARROWEST = 4  # elements of a row that are worth a scale of their own
_PARTS = (8, 4)  # elements that share a byte, in codebooks
_HALF_STEP = 2.0**-12.5  # about what float16 loses of an element; bfloat16 loses 8 times that
_LEAST_SIZE = 2.0**-17  # of elements, in the mean: below it float16 loses more than bfloat16 does
_BFLOAT16_MAX = 3.3895e38  # so that nothing is rounded to infinity

Change = Callable[[Graph, Mapping[Value, Value]], None]


@dataclass(frozen=True)
class QuantizeTables(LossyPass):
    """Stores tables that are only looked up in 16 to 1 bits an element, as the budget allows.

    Needs an error budget, and a table that is only looked up. Rows of few bits have a scale each,
    and are multiplied by it as they are looked up: the table is never there in full precision. The
    scale is the one that loses least; a row of zeros stays one. Rows of large tables can also be
    parts of 4 or 8 elements, each a number of one byte in a codebook. In 16 bits an element is
    float16, or bfloat16 where float16 has not the range for the table. With a trace, rows that are
    read often can have 8 bits and the others 4. What a table gets is decided table by table.
    Fidelity: lossy.

    Attributes:
        min_bytes: smaller tables are not worth an op.
        lookups: False for tables of embedding bags only, before bags are merged.
        codebooks: False for codes with a scale only, which take less time to find.

    Before:
        (int64[N] ids) => (float[N,8] y) <float[100,8] table> {
            y = Gather<axis=0>(table, ids)
        }

    After:
        (int64[N] ids) => (float[N,8] y) <uint8[100,4] codes, float16[100] scales> {
            y = graphopt.QuantizedLookup<bits=4>(codes, scales, ids)
        }
    """

    min_bytes: int = 1024
    lookups: bool = True
    codebooks: bool = True

    name = "quantize-tables"

    def propose(self, graph: Graph, ctx: PassContext) -> Iterable[Proposal]:
        tables = list(self._tables(graph, ctx))
        counts = row_reads(graph, [t for t, _ in tables if not _skips_rows(t)], ctx)
        for table, array in tables:
            yield from _proposals(table, array)
            if self.codebooks:
                yield from _by_codebooks(table, array, ctx)
            if table in counts:
                yield from _in_bands(table, array, counts[table])

    def _tables(self, graph: Graph, ctx: PassContext) -> Iterator[tuple[Value, np.ndarray]]:
        for table in graph.constants():
            array = table.const
            if array is None or table.dtype != "float32" or array.ndim != 2:
                continue
            found = [_is_bag(node) or _is_lookup(node, table) for node in table.users]
            if not any(found) or not (self.lookups or any(map(_is_bag, table.users))):
                continue
            if not all(found) or table.is_graph_output:
                ctx.stats.refuse("quantize", table.users[0], "the table is not only looked up")
            elif array.nbytes < self.min_bytes:
                ctx.stats.refuse("quantize", table.users[0], "the table is small")
            elif not np.isfinite(array).all():
                ctx.stats.refuse("quantize", table.users[0], "the table holds NaN or infinity")
            else:
                yield table, array


def _is_lookup(node: Node, table: Value) -> bool:
    """True if `node` takes rows of `table` and does nothing else with it."""
    others = node.inputs[1:]
    return node.op == "Gather" and node.attr("axis") in (0, -2) and table not in others


def _skips_rows(table: Value) -> bool:
    """True if padding is known by its id, which a map of ids would change."""
    return any(node.attr("padding_idx") is not None for node in table.users)


def _in_bands(table: Value, array: np.ndarray, counts: np.ndarray) -> Iterator[Proposal]:
    if array.shape[1] < _NARROWEST or array.shape[1] % 2 or not counts.any():
        return
    for bands in bands_of(array, counts):
        what = f"int8 for {bands.share:.0%}, int4"
        saves = array.nbytes - bands.nbytes
        yield Proposal(table.name, what, saves, bands.error, _into(table, bands))


def _is_bag(node: Node) -> bool:
    """True for embedding bags that have a form with few bits."""
    if node.op != "graphopt::EmbeddingBag" or node.input(3) is not None:
        return False
    bag = EmbeddingBag.of(node)
    return bag.mode != "max" and bag.by_id == (bag.padding_idx is not None) and bag.empty == 0


def _proposals(table: Value, array: np.ndarray) -> Iterator[Proposal]:
    for bits in (8, 4):
        if array.shape[1] >= _NARROWEST and array.shape[1] % (8 // bits) == 0:
            rounded = RoundedRows.of(array, bits, half_scales=True)
            codes = packed(rounded.codes) if bits == 4 else rounded.codes
            saves = array.nbytes - codes.nbytes - rounded.scales.nbytes
            change = _into(table, _InCodes(codes, rounded.scales, bits))
            yield Proposal(table.name, f"int{bits}", saves, rounded.error, change)
    size = float(np.einsum("ij,ij", array, array, dtype=np.float64) / array.size) ** 0.5
    largest = max(array.max(initial=0), -array.min(initial=0))
    if largest < np.finfo(np.float16).max and not 0 < size < _LEAST_SIZE:
        change = _into(table, _InHalves(array, "float16"))
        yield Proposal(table.name, "float16", array.nbytes // 2, _HALF_STEP * size, change)
    elif largest < _BFLOAT16_MAX:
        change = _into(table, _InHalves(array, "bfloat16"))
        yield Proposal(table.name, "bfloat16", array.nbytes // 2, 8 * _HALF_STEP * size, change)


def _by_codebooks(table: Value, array: np.ndarray, ctx: PassContext) -> Iterator[Proposal]:
    widths = [width for width in _PARTS if array.shape[1] % width == 0]
    if len(array) < MIN_ROWS or not widths or np.abs(array).max() >= np.finfo(np.float16).max:
        return
    if not is_available():
        ctx.stats.refuse("codebooks", table.users[0], "needs faiss: pip install 'graphopt[pq]'")
        return
    for width in widths:
        books = Codebooks.of(array, width)
        saves = array.nbytes - books.codes.nbytes - books.books.nbytes
        what = f"codebooks of {width}"
        yield Proposal(table.name, what, saves, books.error, _into(table, _InBooks(books)))


def _into(table: Value, form: _InCodes | _InHalves | _InBooks | Bands) -> Change:
    """A change of every lookup of `table` to one in another form of it."""

    def apply(graph: Graph, values: Mapping[Value, Value]) -> None:
        target = values[table]
        constants = form.constants(graph, target.name)
        for node in target.users:
            replace(node, [form.lookup(node, constants)])

    return apply


@dataclass(frozen=True, eq=False)
class _InCodes:
    codes: np.ndarray
    scales: np.ndarray
    bits: int

    def constants(self, graph: Graph, name: str) -> list[Value]:
        parts = {"codes": self.codes, "scales": self.scales}
        return [graph.constant(array, f"{name}.{part}") for part, array in parts.items()]

    def lookup(self, node: Node, constants: list[Value]) -> Value:
        op = quantized_embedding_bag if _is_bag(node) else quantized_lookup
        attrs = {"bits": self.bits, **attributes_of(node)}
        return _insert(node, op.OP_TYPE, [*constants, *node.inputs[1:]], attrs, DOMAIN)


@dataclass(frozen=True, eq=False)
class _InBooks:
    found: Codebooks

    def constants(self, graph: Graph, name: str) -> list[Value]:
        parts = {"codes": self.found.codes, "books": self.found.books}
        return [graph.constant(array, f"{name}.{part}") for part, array in parts.items()]

    def lookup(self, node: Node, constants: list[Value]) -> Value:
        op = product_embedding_bag if _is_bag(node) else product_lookup
        inputs = [*constants, *node.inputs[1:]]
        return _insert(node, op.OP_TYPE, inputs, attributes_of(node), DOMAIN)


@dataclass(frozen=True, eq=False)
class _InHalves:
    table: np.ndarray
    dtype: str

    @cached_property
    def half(self) -> np.ndarray:
        """The table in half precision, made where few bits were too few."""
        return self.table.astype(dtype_to_numpy(self.dtype))

    def constants(self, graph: Graph, name: str) -> list[Value]:
        return [graph.constant(self.half, f"{name}.half")]

    def lookup(self, node: Node, constants: list[Value]) -> Value:
        inputs = [*constants, *node.inputs[1:]]
        found = _insert(node, node.op_type, inputs, node.attrs, node.domain)
        return _insert(node, "Cast", [found], {"to": 1})


def _insert(
    before: Node, op: str, inputs: list[Value | None], attrs: dict[str, Attr], domain: str = ""
) -> Value:
    return Rewriter(before, [before]).insert(op, inputs, attrs, domain=domain).output
