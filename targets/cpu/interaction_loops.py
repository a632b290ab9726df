"""The kernel of a LookupInteraction: each sample's features are looked up, then multiplied.

Features of one sample stay in the nearest cache from one to the other. Pairs that have a feature in
common lie side by side: its vectors stay in registers for all of them, so that a product takes one
load. What each pair adds up to, lane by lane, is kept for a block of pairs; then the lanes of as
many pairs as a vector has are added up together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.ir.graph import Node
from graphopt.targets.cpu import DOMAIN
from graphopt.targets.cpu.feature_tiles import FeatureTiles, Products
from graphopt.targets.cpu.kernels.row_codes import Quantization, quantized
from graphopt.targets.cpu.kernels.rows import PREFETCH_DISTANCE
from graphopt.targets.cpu.lookup_interaction import BYTES, OP_TYPE
from graphopt.targets.cpu.lookup_loops import Row, arguments_of, write_row
from graphopt.targets.cpu.lookup_parts import Part
from graphopt.targets.relax.loops import loops, store
from graphopt.targets.relax.lowering import Lowering, int64, lowers
from graphopt.targets.relax.scalar import const

_KEPT = 8  # vectors of a feature that stay in registers
_GROUPS = 4  # sums of so many vectors of pairs are kept: 4 KiB


@lowers(OP_TYPE, domain=DOMAIN)
def _lower_lookup_interaction(lower: Lowering, node: Node) -> Any:
    if "words" in node.attrs:
        return _lower_to_tiles(lower, node)
    rows, parts = lower.dim(node.attrs["rows"]), node.attrs["parts"]
    beside, pairs = node.attrs["beside"], np.array(node.attrs["pairs"])
    lanes, dim, count = node.attrs["lanes"], node.attrs["dim"], node.attrs["features"]
    width = min(lanes, dim & -dim, 1 << (len(pairs).bit_length() - 1))
    kept = _kept(parts, dim)
    width = lanes if kept.any() else width
    kinds = _runs_of(pairs // count, pairs % count, _GROUPS * width, kept)
    arguments = arguments_of(lower, node)
    taken = len(arguments)
    arguments += [lower.constant(array) for runs in kinds.values() for array in runs]
    arguments += [lower.expr(node.inputs[-1])] if beside else []  # type: ignore[arg-type]

    columns, result = node.output.tensor.dims[-1], node.attrs.get("result")
    assert isinstance(columns, int)

    ahead = max(count, PREFETCH_DISTANCE)  # while the sample before is multiplied

    def body(*buffers: Any) -> None:
        sources, remaining, target = buffers[:taken], iter(buffers[taken:-1]), buffers[-1]
        runs = {kind: _Runs(*(next(remaining) for _ in _Runs._fields)) for kind in kinds}
        features = _Features.allocated(count, dim, width, kept)
        sums = T.alloc_buffer((_GROUPS * width * width,), "float32")
        with T.serial(int64(rows)) as i:
            out = _Results(target, i, result)
            row = Row(i, int64(rows), features.floats, 0, features.codes, features.scales)
            write_row(lower, parts, sources, row, ahead=ahead)
            if beside:
                _copy(next(remaining), i, beside, lanes, out)
            features.begin(kept)
            for block in range(-(-len(pairs) // (_GROUPS * width))):
                first = block * _GROUPS * width
                for kind, given in runs.items():
                    _multiply_block(features, sums, kind, given, block)
                for group in range(first, min(first + _GROUPS * width, len(pairs)), width):
                    given_pairs, at = min(width, len(pairs) - group), (group - first) * width
                    _add_lanes(sums, at, width, out, beside + group, given_pairs)
            for column in range(beside + len(pairs), columns):
                store(target, [i, column], const(0, "uint8"))

    (found,) = loops(lower, body, arguments, [([rows, columns], node.output.dtype)])
    return lower.reshape(found, lower.shape(node.output))


def _lower_to_tiles(lower: Lowering, node: Node) -> Any:
    rows, parts, beside = lower.dim(node.attrs["rows"]), node.attrs["parts"], node.attrs["beside"]
    lanes, dim, count = node.attrs["lanes"], node.attrs["dim"], node.attrs["features"]
    left, right = np.divmod(np.array(node.attrs["pairs"]), count)
    products = Products.of(count, dim, left, right, node.attrs["words"])
    arguments = [*arguments_of(lower, node), lower.constant(products.places)]
    taken = len(arguments)
    arguments += [lower.expr(node.inputs[-1])] if beside else []  # type: ignore[arg-type]
    columns = beside + len(left)

    def body(*buffers: Any) -> None:
        *sources, places = buffers[:taken]
        with T.attr(const(0, "int32"), "pragma_import_llvm", products.words.llvm):
            features = T.alloc_buffer((1, count * dim), "float32")
            tiles = FeatureTiles(products)
            with T.serial(int64(rows)) as i:
                out = _Results(buffers[-1], i, None)
                row = Row(i, int64(rows), features, 0)
                write_row(lower, parts, sources, row, ahead=max(count, PREFETCH_DISTANCE))
                if beside:
                    _copy(buffers[taken], i, beside, lanes, out)
                tiles.multiply(features)
                for first, values in tiles.wanted(places, lanes):
                    out.put(beside + first, values, lanes)
            tiles.end()

    (found,) = loops(lower, body, arguments, [([rows, columns], "float32")])
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


def _kept(parts: Sequence[Part], dim: int) -> np.ndarray:
    """Which features are kept as codes."""
    kept, widths = [part.kept for part in parts], [part.width for part in parts]
    return np.repeat(np.array(kept), widths)[::dim]


class _Runs(NamedTuple):
    """Pairs in runs of one common feature within one block of results; int32 arrays or buffers.

    Attributes:
        common: the feature of each run.
        starts: the first pair of each run, and the number of pairs.
        other: the other feature of each pair.
        places: where in its block the result of each pair is.
        blocks: the first run of each block, and the number of runs.
    """

    common: Any
    starts: Any
    other: Any
    places: Any
    blocks: Any


def _runs_of(left: np.ndarray, right: np.ndarray, size: int, kept: np.ndarray) -> dict[str, _Runs]:
    """Of the pairs (left[p], right[p]), in blocks of `size`, those of each kind.

    Kinds are of two features as floats, of a float one and one of codes, of two of codes.
    """
    swapped = kept[left] & ~kept[right]
    left, right = np.where(swapped, right, left), np.where(swapped, left, right)
    kind_of = kept[left].astype(int) + kept[right]
    blocks, found = -(-len(left) // size), {}
    for number, kind in enumerate(("floats", "mixed", "codes")):
        chosen = np.flatnonzero(kind_of == number)
        if len(chosen):
            sides = [(left[chosen], right[chosen]), (right[chosen], left[chosen])]
            candidates = [_joined(*side, chosen, size, blocks) for side in sides]
            usable = candidates[:1] if kind == "mixed" else candidates
            found[kind] = min(usable, key=lambda runs: len(runs.common))
    return found


def _joined(
    common: np.ndarray, other: np.ndarray, pairs: np.ndarray, size: int, blocks: int
) -> _Runs:
    order = np.lexsort((pairs, common, pairs // size))
    common, other, pairs = common[order], other[order], pairs[order]
    block = pairs // size
    begins = np.append(True, (np.diff(common) != 0) | (np.diff(block) != 0))
    starts = np.flatnonzero(begins)
    first = np.searchsorted(block[starts], np.arange(blocks + 1))
    arrays = common[starts], np.append(starts, len(pairs)), other, pairs % size, first
    return _Runs(*(array.astype(np.int32) for array in arrays))


class _Features(NamedTuple):
    """The features of a sample: elements, or codes with a scale, and what sums of these start from.

    A product of codes takes those of the common feature plus 128, as the instruction wants one
    factor without sign; a sum starts from -128 times the codes of the other.
    """

    floats: Any
    codes: Any
    scales: Any
    starts: Any
    dim: int
    width: int

    @staticmethod
    def allocated(count: int, dim: int, width: int, kept: np.ndarray) -> _Features:
        floats = T.alloc_buffer((1, count * dim), "float32")
        if not kept.any():
            return _Features(floats, None, None, None, dim, width)
        codes, scales = T.alloc_buffer((count * dim,), "int8"), T.alloc_buffer((count,), "float32")
        starts = T.alloc_buffer((count * width,), "int32")
        return _Features(floats, codes, scales, starts, dim, width)

    def begin(self, kept: np.ndarray) -> None:
        """Find what sums start from."""
        for feature in np.flatnonzero(kept):
            total = tirx.Broadcast(const(0, "int32"), self.width)
            for vector in self._bytes(int(feature) * self.dim):
                total = _dot(total, tirx.Broadcast(const(-128, "int8"), BYTES), vector)
            at = tirx.Ramp(int(feature) * self.width, 1, self.width)
            T.buffer_store(self.starts, tirx.Broadcast(const(0, "int32"), self.width) - total, [at])

    def _bytes(self, place: Any) -> list[Any]:
        steps = range(0, self.dim, BYTES)
        return [self.codes[tirx.Ramp(place + step, 1, BYTES)] for step in steps]

    def unsigned(self, feature: Any) -> list[Any]:
        """Its codes plus 128."""
        top = tirx.Broadcast(const(-0x7F7F7F80, "int32"), BYTES // 4)
        words = (
            tirx.reinterpret(f"int32x{BYTES // 4}", v) ^ top
            for v in self._bytes(feature * self.dim)
        )
        return [T.bind(tirx.reinterpret(f"int8x{BYTES}", word)) for word in words]

    def product(self, own: Sequence[Any], scale: Any, other: Any) -> Any:
        """The lanes of the sum of products of two features of codes."""
        total = self.starts[tirx.Ramp(other * self.width, 1, self.width)]
        for unsigned, signed in zip(own, self._bytes(other * self.dim)):
            total = _dot(total, unsigned, signed)
        factor = tirx.Broadcast(scale * self.scales[other], self.width)
        return total.astype(f"float32x{self.width}") * factor


def _dot(total: Any, unsigned: Any, signed: Any) -> Any:
    name = "llvm.x86.avx512.vpdpbusd.512"
    return tirx.call_llvm_pure_intrin("int32x16", name, total, unsigned, signed)


def _multiply_block(features: _Features, sums: Any, kind: str, runs: _Runs, block: int) -> None:
    """Sums of each lane for the pairs of one kind in a block."""
    with T.serial(runs.blocks[block + 1] - runs.blocks[block]) as r:
        run = T.bind(runs.blocks[block] + r)
        if kind == "codes":
            _multiply_codes(features, sums, runs, run)
        else:
            _multiply(features, sums, runs, run, kind == "mixed")


def _multiply_codes(features: _Features, sums: Any, runs: _Runs, run: Any) -> None:
    width, common = features.width, T.bind(runs.common[run])
    own, scale = features.unsigned(common), T.bind(features.scales[common])
    with T.serial(runs.starts[run + 1] - runs.starts[run]) as p:
        pair = T.bind(runs.starts[run] + p)
        value = features.product(own, scale, T.bind(runs.other[pair]))
        T.buffer_store(sums, value, [tirx.Ramp(runs.places[pair] * width, 1, width)])


def _multiply(features: _Features, sums: Any, runs: _Runs, run: Any, mixed: bool) -> None:
    """Where they are `mixed`, the other features are codes."""
    dim, width, common = features.dim, features.width, runs.common[run]
    own = T.alloc_buffer((min(dim, _KEPT * width),), "float32")
    total = T.alloc_buffer((width,), "float32")

    def element(at: Any) -> Any:
        return features.codes[at].astype("float32") if mixed else features.floats[0, at]

    for part in range(0, dim, _KEPT * width):
        vectors = range(part, min(part + _KEPT * width, dim), width)
        for at in vectors:
            with T.vectorized(width) as lane:
                store(own, [at - part + lane], features.floats[0, common * dim + at + lane])
        with T.serial(runs.starts[run + 1] - runs.starts[run]) as p:
            pair = T.bind(runs.starts[run] + p)
            place = T.bind(runs.places[pair] * width)
            other = T.bind(runs.other[pair])
            if part:
                with T.vectorized(width) as lane:
                    store(total, [lane], sums[place + lane])
            for at in vectors:
                with T.vectorized(width) as lane:
                    product = own[at - part + lane] * element(other * dim + at + lane)
                    store(total, [lane], total[lane] + product if at else product)
            is_last = part + _KEPT * width >= dim
            scale = T.bind(features.scales[other]) if mixed and is_last else None
            with T.vectorized(width) as lane:
                value = total[lane] if scale is None else total[lane] * scale
                store(sums, [place + lane], value)


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
