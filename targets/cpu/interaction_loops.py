"""The kernel of a LookupInteraction: each sample's features are looked up, then multiplied.

Features of one sample stay in the nearest cache from one to the other. Pairs that have a feature in
common lie side by side: its vectors stay in registers for all of them, so that a product takes one
load. What each pair adds up to, lane by lane, is kept for a block of pairs; then the lanes of as
many pairs as a vector has are added up together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.ir.graph import Node
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.kernels.row_codes import Quantization, quantized
from graphopt.targets.cpu.kernels.rows import PREFETCH_DISTANCE
from graphopt.targets.cpu.lookup_interaction import OP_TYPE
from graphopt.targets.cpu.lookup_loops import Row, arguments_of, write_row
from graphopt.targets.relax.loops import loops, store
from graphopt.targets.relax.lowering import Lowering, int64, lowers
from graphopt.targets.relax.scalar import const

_KEPT = 8  # vectors of a feature that stay in registers
_GROUPS = 4  # sums of so many vectors of pairs are kept: 4 KiB


@lowers(OP_TYPE, domain=DOMAIN)
def _lower_lookup_interaction(lower: Lowering, node: Node) -> Any:
    rows, parts = lower.dim(node.attrs["rows"]), node.attrs["parts"]
    beside, pairs = node.attrs["beside"], np.array(node.attrs["pairs"])
    lanes, dim, count = node.attrs["lanes"], node.attrs["dim"], node.attrs["features"]
    width = min(lanes, dim & -dim, 1 << (len(pairs).bit_length() - 1))
    runs = _Runs.of(pairs // count, pairs % count, _GROUPS * width)
    arguments = arguments_of(lower, node)
    taken = len(arguments)
    arguments += map(lower.constant, runs.arrays)
    arguments += [lower.expr(node.inputs[-1])] if beside else []  # type: ignore[arg-type]

    columns, result = node.output.tensor.dims[-1], node.attrs.get("result")
    assert isinstance(columns, int)

    ahead = max(count, PREFETCH_DISTANCE)  # while the sample before is multiplied

    def body(*buffers: Any) -> None:
        sources, (common, starts, other, blocks, *head, target) = buffers[:taken], buffers[taken:]
        sample = T.alloc_buffer((1, count * dim), "float32")
        sums = T.alloc_buffer((_GROUPS * width * width,), "float32")
        with T.serial(int64(rows)) as i:
            out = _Results(target, i, result)
            write_row(lower, parts, sources, Row(i, int64(rows), sample, 0), ahead=ahead)
            if beside:
                _copy(head[0], i, beside, lanes, out)
            for block in range(len(runs.blocks) - 1):
                first = block * _GROUPS * width
                with T.serial(blocks[block + 1] - blocks[block]) as r:
                    run = T.bind(blocks[block] + r)
                    _multiply(sample, sums, dim, width, common[run], starts, run, other, first)
                for group in range(first, min(first + _GROUPS * width, len(pairs)), width):
                    given, at = min(width, len(pairs) - group), (group - first) * width
                    _add_lanes(sums, at, width, out, beside + group, given)
            for column in range(beside + len(pairs), columns):
                store(target, [i, column], const(0, "uint8"))

    (found,) = loops(lower, body, arguments, [([rows, columns], node.output.dtype)])
    return lower.reshape(found, lower.shape(node.output))


class _Results(NamedTuple):
    """Row `i` of the results, which are codes where it is said how they are rounded."""

    target: Any
    i: Any
    rounding: Quantization | None

    def put(self, column: Any, value: Any, size: int) -> None:
        """Store a vector of so many elements, or one element."""
        if self.rounding is not None:
            value = quantized(value, self.rounding, size)
        index = tirx.Ramp(column, 1, size) if size > 1 else column
        store(self.target, [self.i, index], value)


def _copy(source: Any, i: Any, width: int, lanes: int, out: _Results) -> None:
    for first in range(0, width - lanes + 1, lanes):
        out.put(first, source[i, tirx.Ramp(first, 1, lanes)], lanes)
    if width % lanes:
        with T.serial(width % lanes) as j:
            at = width - width % lanes + j
            out.put(at, source[i, at], 1)


@dataclass(frozen=True)
class _Runs:
    """Pairs in the order of the results, in runs of one common feature within one block; int32.

    Attributes:
        common: the feature of each run.
        starts: the first pair of each run, and the number of pairs.
        other: the other feature of each pair.
        blocks: the first run of each block, and the number of runs.
    """

    common: np.ndarray
    starts: np.ndarray
    other: np.ndarray
    blocks: np.ndarray

    @staticmethod
    def of(left: np.ndarray, right: np.ndarray, size: int) -> _Runs:
        """Of the pairs (left[p], right[p]), in blocks of `size`."""
        block = np.arange(len(left)) // size

        def begun(side: np.ndarray) -> np.ndarray:
            return np.flatnonzero(np.append(True, (np.diff(side) != 0) | (np.diff(block) != 0)))

        common, other = min((left, right), (right, left), key=lambda sides: len(begun(sides[0])))
        starts = begun(common)
        blocks = np.searchsorted(block[starts], np.arange(block[-1] + 2))
        arrays = common[starts], np.append(starts, len(left)), other, blocks
        return _Runs(*(array.astype(np.int32) for array in arrays))

    @property
    def arrays(self) -> Sequence[np.ndarray]:
        return self.common, self.starts, self.other, self.blocks


def _multiply(
    sample: Any,
    sums: Any,
    dim: int,
    width: int,
    common: Any,
    starts: Any,
    run: Any,
    other: Any,
    block: int,
) -> None:
    """Sums of each lane for the pairs of a run; sums[0] is that of pair `block`."""
    own = T.alloc_buffer((min(dim, _KEPT * width),), "float32")
    total = T.alloc_buffer((width,), "float32")
    for part in range(0, dim, _KEPT * width):
        vectors = range(part, min(part + _KEPT * width, dim), width)
        for at in vectors:
            with T.vectorized(width) as lane:
                store(own, [at - part + lane], sample[0, common * dim + at + lane])
        with T.serial(starts[run + 1] - starts[run]) as p:
            pair = T.bind(starts[run] + p)
            place = T.bind((pair - block) * width)
            feature = T.bind(other[pair] * dim)
            if part:
                with T.vectorized(width) as lane:
                    store(total, [lane], sums[place + lane])
            for at in vectors:
                with T.vectorized(width) as lane:
                    product = own[at - part + lane] * sample[0, feature + at + lane]
                    store(total, [lane], total[lane] + product if at else product)
            with T.vectorized(width) as lane:
                store(sums, [place + lane], total[lane])


def _add_lanes(sums: Any, at: int, width: int, out: _Results, column: int, given: int) -> None:
    """The `given` results from `column` on are sums over the lanes of vectors, from sums[at] on.

    Vectors are added to one another while they are transposed; see `kernels.folding`.
    """
    vectors = [sums[tirx.Ramp(at + k * width, 1, width)] for k in range(width)]
    step = 1
    while step < width:
        own = [lane + (width - step if lane & step else 0) for lane in range(width)]
        other = [lane + step for lane in own]
        vectors = [
            T.bind(tirx.Shuffle(two, own) + tirx.Shuffle(two, other))
            for two in zip(vectors[::2], vectors[1::2])
        ]
        step *= 2
    if given == width:
        out.put(column, vectors[0], width)
    else:
        T.buffer_store(sums, vectors[0], [tirx.Ramp(at, 1, width)])
        with T.serial(given) as lane:
            out.put(column + lane, sums[at + lane], 1)
