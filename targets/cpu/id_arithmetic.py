"""Ids that are computed from others, as expressions inside the kernel that looks them up.

Hashing, quotients and remainders, offsets of fields in one table: each is arithmetic on whole
numbers that would otherwise be a kernel of its own, which writes ids for the next one to read.

Compiled code assumes that no signed sum or product overflows, so from one that might, the compiler
could conclude that an id needs no check. Those are computed so that they wrap around, as ONNX's do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Union

import numpy as np
from tvm import tirx

from graphopt.ir.content import known_ints
from graphopt.ir.dims import Dim, product
from graphopt.ir.graph import Graph, Node, Value
from graphopt.targets.relax import scalar
from graphopt.targets.relax.ops.elementwise import BINARY

Bounds = tuple[int, int]
Read = Callable[[int, Any, Any], Any]
"""(source, row, column) -> the element"""

UNROLLED = 64  # columns whose numbers become literals of the code, which makes divisions cheap
_MAX_OPS = 24  # of one id; more are a kernel of their own
_VIEWS = frozenset(["Reshape", "Flatten", "Identity", "Squeeze", "Unsqueeze"])
_COMPARISONS = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")


# ------------------------------------------------------------------ expressions


@dataclass(frozen=True)
class Given:
    """Column `start + k` of source number `source`."""

    source: int
    start: int = 0

    def at(self, read: Read, i: Any, k: Any) -> Any:
        return read(self.source, i, self.start + k)


@dataclass(frozen=True)
class Numbers:
    """A number for each column, or one for all."""

    numbers: tuple[Any, ...]
    dtype: str

    @property
    def differ(self) -> bool:
        return len(self.numbers) > 1

    def at(self, read: Read, i: Any, k: Any) -> Any:
        return scalar.const(self.numbers[k if self.differ else 0], self.dtype)


@dataclass(frozen=True)
class Computed:
    """An ONNX op on the results of others; `wraps` if these may be too large for its result."""

    op: str
    dtype: str
    operands: tuple[Expression, ...]
    truncates: bool = False
    wraps: bool = False

    @property
    def differ(self) -> bool:
        return any(not isinstance(part, Given) and part.differ for part in self.operands)

    def at(self, read: Read, i: Any, k: Any) -> Any:
        operands = [operand.at(read, i, k) for operand in self.operands]
        return scalar.cast(self._applied(operands), self.dtype)

    def _applied(self, operands: list[Any]) -> Any:
        if self.wraps:
            return scalar.wrapping(BINARY[self.op], *operands)
        if self.op in BINARY:
            return BINARY[self.op](*operands)
        if self.op == "Mod":
            return scalar.remainder(operands[0], operands[1], self.truncates)
        if self.op == "Clip":
            return tirx.max(tirx.min(operands[0], operands[2]), operands[1])
        if self.op == "Cast":
            return _inside(operands[0], self.dtype)
        return {"Where": tirx.Select, "Not": tirx.Not, "Floor": tirx.floor}[self.op](*operands)


Expression = Union[Given, Numbers, Computed]


def givens(expression: Expression) -> Iterator[Given]:
    """The columns of sources that an expression reads."""
    if isinstance(expression, Given):
        yield expression
    elif isinstance(expression, Computed):
        for operand in expression.operands:
            yield from givens(operand)


def _inside(x: Any, dtype: str) -> Any:
    """A float that can be cast to an integer of `dtype`: the nearest one that fits."""
    source = scalar.dtype_of(x)
    if not scalar.is_float(source) or scalar.is_float(dtype) or dtype == "bool":
        return x
    wide = scalar.cast(x, scalar.working_dtype(source))
    precise = np.dtype(scalar.dtype_of(wide)).type
    low, high = _range_of(dtype)
    most = precise(high)
    if int(most) > high:
        most = np.nextafter(most, precise(0))
    least, most = (scalar.const(float(limit), scalar.dtype_of(wide)) for limit in (low, most))
    below = tirx.Select(wide < most, wide, most)  # also where it is NaN
    return tirx.Select(below > least, below, least)


def _range_of(dtype: str) -> Bounds:
    return (0, 1) if dtype == "bool" else (scalar.lowest(dtype), scalar.highest(dtype))


# ---------------------------------------------------------------------- reading


class Source(NamedTuple):
    """A tensor [rows, width] that ids are read from; of one row for all if `shared`."""

    value: Value
    width: int
    shared: bool = False


class Ids(NamedTuple):
    """Ids [rows, columns] as an expression of `sources`, and the nodes that it stands for."""

    expression: Expression
    sources: tuple[Source, ...]
    nodes: tuple[Node, ...]


def ids_of(ids: Value, columns: int, literals: bool = True) -> Ids:
    """The elements of `ids`, seen as [rows, columns], by what they are computed from.

    Args:
        literals: numbers that differ from column to column may be part of the code, which is then
            written once for each column.
    """
    rows = product(ids.tensor.dims) // columns
    reader = _Reader(rows, columns, literals and columns <= UNROLLED)
    expression, _ = reader.read(ids, _Frame(_without_ones(ids), 0, whole=True))
    return Ids(expression, tuple(reader.sources), tuple(reader.nodes))


class _Frame(NamedTuple):
    """Where the ids lie in a value: in all of it, or in columns of a matrix from `start` on."""

    shape: tuple[Dim, ...]
    start: int
    whole: bool


class _Reader:
    def __init__(self, rows: Dim, columns: int, literals: bool) -> None:
        self.rows, self.columns, self.literals = rows, columns, literals
        self.sources: list[Source] = []
        self.nodes: list[Node] = []

    def read(self, value: Value, frame: _Frame) -> tuple[Expression, Bounds]:
        if value.const is not None:
            found = self._constant(value, frame)
            if found is not None:
                return found
        node = value.producer
        if node is None or _without_ones(value) != frame.shape:
            return self._given(value, frame)
        viewed = node.inputs[0] if node.op in _VIEWS else None
        if viewed is not None and _without_ones(viewed) == frame.shape:
            return self.read(viewed, frame)
        taken = columns_of(value)
        if taken is not None and taken[0].tensor.dims[0] == self.rows:
            matrix, first = taken
            self.nodes.append(node)
            whole = matrix.tensor.dims[-1] == 1  # its shape without ones has no columns
            inside = _Frame(_without_ones(matrix), first + frame.start, whole)
            return self.read(matrix, inside)
        return self._computed(node, frame) or self._given(value, frame)

    def _constant(self, value: Value, frame: _Frame) -> tuple[Expression, Bounds] | None:
        array = value.const
        assert array is not None
        if array.dtype.kind not in "ifb" or not array.size:  # no numbers beyond those of int64
            return None
        bounds = (array.min().item(), array.max().item())
        if array.size == 1:
            return Numbers((array.item(),), value.dtype), bounds
        last = frame.shape[-1] if frame.shape else 1
        if array.shape[-1] != array.size or array.size != last:
            return None
        if frame.whole and last != self.columns:
            return None
        own = array.reshape(-1)[frame.start : frame.start + self.columns]
        if self.literals:
            return Numbers(tuple(own.tolist()), value.dtype), bounds
        return self._source(Source(Graph().constant(own), self.columns, shared=True)), bounds

    def _given(self, value: Value, frame: _Frame) -> tuple[Expression, Bounds]:
        width = self.columns if frame.whole else frame.shape[-1]
        assert isinstance(width, int)
        return self._source(Source(value, width), frame.start), _bounds_of(value)

    def _source(self, source: Source, start: int = 0) -> Given:
        if source not in self.sources:
            self.sources.append(source)
        return Given(self.sources.index(source), start)

    def _computed(self, node: Node, frame: _Frame) -> tuple[Expression, Bounds] | None:
        """What an op computes, if it is one of those known here, on operands of its shape."""
        rule = _BOUNDS.get(node.op)
        operands = node.operands
        fits = all(v.const is not None or _fits(v, frame) for v in operands)
        if rule is None or not fits or len(self.nodes) >= _MAX_OPS:
            return None
        before = len(self.sources), len(self.nodes)
        self.nodes.append(node)
        read = [self.read(value, frame) for value in operands]
        parts, bounds = [part for part, _ in read], [bound for _, bound in read]
        within = rule(node, bounds)
        wraps = within is None and _is_whole_arithmetic(node)
        within = _range_of(node.output.dtype) if wraps else within
        if within is None or len(self.nodes) > _MAX_OPS:
            del self.sources[before[0] :], self.nodes[before[1] :]
            return None
        truncates = bool(node.attr("fmod", 0))
        dtype = node.output.dtype
        return Computed(node.op_type, dtype, tuple(parts), truncates, wraps), within


def _fits(value: Value, frame: _Frame) -> bool:
    return value.shape is not None and _without_ones(value) == frame.shape


def _without_ones(value: Value) -> tuple[Dim, ...]:
    return tuple(dim for dim in value.tensor.dims if dim != 1)


def _bounds_of(value: Value) -> Bounds:
    return (0, 0) if scalar.is_float(value.dtype) else _range_of(value.dtype)


def columns_of(value: Value) -> tuple[Value, int] | None:
    """The matrix [n, m] that `value` is columns of, and the first of these."""
    node = value.producer
    matrix = None if node is None or not node.inputs else node.inputs[0]
    if node is None or matrix is None or matrix.rank != 2:
        return None
    width = matrix.tensor.dims[1]
    if not isinstance(width, int):
        return None
    if node.op == "Gather" and node.attr("axis") in (1, -1):
        at = node.const(1)
        if at is None or at.size != 1 or not -width <= at.item() < width:
            return None
        return matrix, at.item() % width
    if node.op == "Split" and node.attr("axis") in (1, -1):
        sizes = [output.tensor.dims[1] for output in node.outputs]
        before = [size for size in sizes[: node.outputs.index(value)] if isinstance(size, int)]
        return (matrix, sum(before)) if len(before) == node.outputs.index(value) else None
    if node.op == "Slice":
        start, _, axes, steps = (_known(node.input(k)) for k in range(1, 5))
        if start is not None and axes in ([1], [-1]) and steps in (None, [1]):
            first = start[0] + width if start[0] < 0 else start[0]
            wanted = value.tensor.dims[1]
            if isinstance(wanted, int) and 0 <= first <= width - wanted:
                return matrix, first
    return None


def _known(value: Value | None) -> list[int] | None:
    return None if value is None or value.content is None else known_ints(value.content)


# ----------------------------------------------------------------------- bounds

_Operands = Sequence[Bounds]


def _fitting(node: Node, low: int, high: int) -> Bounds | None:
    least, most = _range_of(node.output.dtype)
    return (low, high) if least <= low and high <= most else None


def _corners(node: Node, bounds: _Operands) -> Bounds | None:
    """Sums, differences and products lie between those of the ends."""
    if _is_float(node) or len(bounds) != 2:
        return None
    apply = {"Add": int.__add__, "Sub": int.__sub__, "Mul": int.__mul__}[node.op]
    ends = [apply(int(a), int(b)) for a in bounds[0] for b in bounds[1]]
    return _fitting(node, min(ends), max(ends))


def _quotient(node: Node, bounds: _Operands) -> Bounds | None:
    if _is_float(node):
        return 0, 0
    (low, high), (least, _) = bounds
    if least < 1:
        return None
    return _fitting(node, -(-low // least) if low < 0 else 0, max(high // least, 0))


def _remainder(node: Node, bounds: _Operands) -> Bounds | None:
    (low, _), (least, most) = bounds
    if _is_float(node) or least < 1:
        return None
    return (0 if low >= 0 or not node.attr("fmod", 0) else 1 - most), most - 1


def _choice(node: Node, bounds: _Operands) -> Bounds | None:
    if _is_float(node):
        return None
    _, a, b = bounds
    return min(a[0], b[0]), max(a[1], b[1])


def _extremum(node: Node, bounds: _Operands) -> Bounds | None:
    if _is_float(node) or len(bounds) != 2:
        return None
    apply = max if node.op == "Max" else min
    return apply(a for a, _ in bounds), apply(b for _, b in bounds)


def _clip(node: Node, bounds: _Operands) -> Bounds | None:
    if _is_float(node) or len(bounds) != 3 or node.const(1) is None or node.const(2) is None:
        return None
    (low, high), (least, _), (most, _) = bounds
    return (min(max(low, least), most), max(min(high, most), least)) if least <= most else None


def _cast(node: Node, bounds: _Operands) -> Bounds | None:
    source = node.inputs[0]
    assert source is not None
    if _is_float(node):
        return 0, 0
    if scalar.is_float(source.dtype):
        return None if node.output.dtype == "bool" else _range_of(node.output.dtype)
    return (0, 1) if node.output.dtype == "bool" else _fitting(node, *bounds[0])


def _floor(node: Node, bounds: _Operands) -> Bounds | None:
    return 0, 0


def _condition(node: Node, bounds: _Operands) -> Bounds | None:
    floats = any(v is not None and scalar.is_float(v.dtype) for v in node.inputs)
    return None if floats else (0, 1)


_BOUNDS: dict[str, Callable[[Node, _Operands], Bounds | None]] = {
    **dict.fromkeys(("Add", "Sub", "Mul"), _corners),
    "Div": _quotient,
    "Mod": _remainder,
    "Where": _choice,
    **dict.fromkeys(("Max", "Min"), _extremum),
    "Cast": _cast,
    "Clip": _clip,
    "Floor": _floor,
    **dict.fromkeys((*_COMPARISONS, "And", "Or", "Not"), _condition),
}


def _is_float(node: Node) -> bool:
    return scalar.is_float(node.output.dtype)


def _is_whole_arithmetic(node: Node) -> bool:
    return node.op in ("Add", "Sub", "Mul") and not _is_float(node)
