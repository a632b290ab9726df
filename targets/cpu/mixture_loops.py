"""The kernel of a Mixture: for each sample its shares, then the experts' rows times these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T

from graphopt.ir.graph import Node
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.kernels.panels import Columns
from graphopt.targets.cpu.kernels.tiles import Tiles
from graphopt.targets.cpu.mixtures import OP_TYPE
from graphopt.targets.kernels.elementary import exp_of_negative
from graphopt.targets.relax.loops import loops, store
from graphopt.targets.relax.lowering import Lowering, int64, lowers
from graphopt.targets.relax.scalar import const

_SUMS = 8  # vectors of sums that keep two units for fused multiply-adds busy


@lowers(OP_TYPE, domain=DOMAIN)
def _lower_mixture(lower: Lowering, node: Node) -> Any:
    rows, lanes = lower.dim(node.attrs["rows"]), node.attrs["lanes"]
    (_, gate), *experts = node.attrs["parts"]
    wide = {at: columns.source for at, columns in node.attrs["parts"]}
    matrices = [
        lower.reshape(lower.expr(value), [rows, wide[at]])
        for at, value in enumerate(node.inputs)
        if value is not None
    ]

    def body(*buffers: Any) -> None:
        *sources, target = buffers
        with T.serial(int64(rows)) as i:
            shares = _load(sources[0], i, gate, lanes)
            if node.attrs["softmax"]:
                _normalize(shares, lanes)
            _mix(sources, i, experts, shares, target, lanes)

    (mixed,) = loops(lower, body, matrices, [([rows, experts[0][1].width], "float32")])
    return lower.reshape(mixed, lower.shape(node.output))


def _vector(count: int, lanes: int) -> int:
    """Elements of the vectors that `count` shares are in; a power of two."""
    return min(lanes, 1 << (count - 1).bit_length())


def _load(source: Any, i: Any, gate: Columns, lanes: int) -> Any:
    """A new buffer of whole vectors with what row i has for each expert, and -inf beyond."""
    width = _vector(gate.width, lanes)
    whole, padded = gate.width // width * width, -(-gate.width // width) * width
    shares = T.alloc_buffer((padded,), "float32")
    for first in range(0, whole, width):
        with T.vectorized(width) as lane:
            store(shares, [first + lane], source[i, gate.start + first + lane])
    for e in range(whole, padded):
        given = source[i, gate.start + e] if e < gate.width else const(float("-inf"), "float32")
        store(shares, [e], given)
    return shares


def _normalize(shares: Any, lanes: int) -> None:
    """Softmax of a buffer of whole vectors. NaN spreads, and so do inf and a row of -inf alone."""
    padded = int(shares.shape[0])
    width = _vector(padded, lanes)
    top = T.bind(_combined(shares, width, T.max))

    def each(change: Callable[[Any], Any]) -> None:
        for first in range(0, padded, width):
            with T.vectorized(width) as lane:
                store(shares, [first + lane], change(shares[first + lane]))

    each(lambda value: exp_of_negative(value - top))
    total = T.bind(_combined(shares, width, lambda a, b: a + b))
    each(lambda value: value / total)


def _combined(values: Any, width: int, combine: Callable[[Any, Any], Any]) -> Any:
    """All elements of a buffer as one: vectors first, then halves of what these leave."""
    acc = T.alloc_buffer((width,), "float32")
    with T.vectorized(width) as lane:
        store(acc, [lane], values[lane])
    for first in range(width, int(values.shape[0]), width):
        with T.vectorized(width) as lane:
            store(acc, [lane], combine(acc[lane], values[first + lane]))
    half = width // 2
    while half:
        with T.vectorized(half) as lane:
            store(acc, [lane], combine(acc[lane], acc[half + lane]))
        half //= 2
    return acc[0]


def _mix(
    sources: Sequence[Any],
    i: Any,
    experts: Sequence[tuple[int, Columns]],
    shares: Any,
    target: Any,
    lanes: int,
) -> None:
    """target[i] = the rows i of the experts times their shares, added up in order."""
    tiles = Tiles(experts[0][1].width, lanes, _SUMS)
    acc = T.alloc_buffer((tiles.vectors * tiles.lanes,), "float32")

    def vectors(tile: Any, change: Callable[[Any, Any], None]) -> None:
        for v in range(tiles.vectors):
            with T.vectorized(tiles.lanes) as lane:
                change(v * tiles.lanes + lane, tiles.column(tile, v) + lane)

    def add(number: int, at: int, start: int) -> Callable[[Any, Any], None]:
        def change(place: Any, column: Any) -> None:
            part = shares[number] * sources[at][i, start + column]
            store(acc, [place], part if number == 0 else acc[place] + part)

        return change

    with T.serial(tiles.count) as tile:
        for number, (at, columns) in enumerate(experts):
            vectors(tile, add(number, at, columns.start))
        vectors(tile, lambda place, column: store(target, [i, column], acc[place]))
