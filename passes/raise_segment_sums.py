"""Segments that are sorted, numbered and padded to be reduced are reduced by a scatter."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.ir.types import dtype_to_onnx
from graphopt.passes._shapes import ints_of
from graphopt.pipeline.base import Fidelity, RewritePass
from graphopt.rewrite import NoMatch, Rewriter, op, rule, var

rows, places, axes = var("rows"), var("places"), var("axes")
data, segments, counts = var("data"), var("segments"), var("counts")

# What a scatter does with several updates of one place, and what it begins with.
_SCATTERED = {
    "ReduceSum": ("add", 0.0),
    "ReduceProd": ("mul", 1.0),
    "ReduceMax": ("max", -np.inf),
    "ReduceMin": ("min", np.inf),
}


@rule(*(getattr(op, kind)(op.Gather(rows, places, axis=0), axes) for kind in _SCATTERED))
def padded_to_scatter(rw: Rewriter, node: Node, rows: Value, places: Value) -> Value | NoMatch:
    """Reduce(Gather(Concat(x, neutral), padded places of each segment), 1) -> ScatterND(…, x)"""
    found = _padded_segments(places)
    if found is None or ints_of(node.inputs[1]) != [1]:
        return NoMatch("it does not reduce the padded places of segments")
    segments, number = found
    kind, start = _SCATTERED[node.op]
    joined = rows.producer
    if joined is None or joined.op != "Concat" or joined.attr("axis") or len(joined.inputs) != 2:
        return NoMatch("there is no row for what is padded")
    data, filler = joined.inputs
    assert data is not None and filler is not None
    sizes = rows.shape or (None,)
    if not _is_neutral(filler, kind, start) or any(not isinstance(d, int) for d in sizes[1:]):
        return NoMatch("what is padded counts, or rows are of unknown size")
    if (
        not data.shape or data.shape[:1] != segments.shape
    ):  # fails if there are fewer rows than there are places
        data = rw.op.Slice(data, rw.ints(0), rw.op.Shape(segments), rw.ints(0))
    # Zeros that counts may begin with too: then both are known to have as many rows.
    zeros = rw.op.ConstantOfShape(number, value=np.zeros(1, np.int64))
    zeros = rw.op.Reshape(zeros, rw.ints(-1, *[1] * (len(sizes) - 1)))
    begun = rw.op.Add(rw.op.Cast(zeros, to=dtype_to_onnx(data.dtype)), filler)
    column = rw.op.Reshape(segments, rw.ints(-1, 1))
    found_sum = rw.op.ScatterND(begun, column, data, reduction=kind)
    if not node.attr("keepdims"):
        return found_sum
    return rw.op.Unsqueeze(found_sum, rw.ints(1))


@rule(op.ScatterElements(data, segments, counts, reduction="none"))
def counts_to_scatter(
    rw: Rewriter, data: Value, segments: Value, counts: Value
) -> Value | NoMatch | None:
    """ScatterElements(0, values and counts of Unique(x)) -> ScatterElements(0, x, 1; add)"""
    unique = segments.producer
    if unique is None or unique.op != "Unique" or segments is not unique.outputs[0]:
        return None
    if len(unique.outputs) < 4 or counts is not unique.outputs[3]:
        return None
    ids, start = unique.inputs[0], data.producer
    if ids is None or ids.rank != 1 or start is None or start.op != "ConstantOfShape":
        return NoMatch("it does not count elements of a vector from 0")
    begin = start.attr("value")
    if data.rank != 1 or begin is None or begin.dtype != np.int64 or begin.any():
        return NoMatch("it does not count elements of a vector from 0")
    sort = _ascending(ids)
    ids = ids if sort is None else sort.inputs[0]
    ones = rw.op.ConstantOfShape(rw.op.Shape(ids), value=np.ones(1, np.int64))
    return rw.op.ScatterElements(data, ids, ones, axis=0, reduction="add")


def _is_neutral(filler: Value, kind: str, start: float) -> bool:
    """True for one row that changes no result of a reduction."""
    if filler.const is None or filler.const.shape[:1] != (1,) or not filler.const.size:
        return False
    if filler.dtype in ("float32", "float64") and kind in ("max", "min"):
        # The outermost finite number is what frameworks begin extremes with.
        limit = float(np.finfo(filler.const.dtype).max)
        return bool(np.isin(filler.const, (start, np.copysign(limit, start))).all()) and bool(
            (filler.const == filler.const.flat[0]).all()
        )
    return kind in ("add", "mul") and bool((filler.const == start).all())


def _padded_segments(places: Value) -> tuple[Value, Value] | None:
    """The segment of each row, int64 [n], and how many segments there are, int64 [1].

    `places`, [segments, most rows of one], must hold the rows of each segment and -1 otherwise.
    """
    scatter = places.producer
    if scatter is None or scatter.op != "ScatterND" or scatter.attr("reduction", "none") != "none":
        return None
    empty, tuples, order = (value.producer for value in scatter.inputs if value is not None)
    if empty is None or tuples is None or order is None or scatter.inputs[2] is None:
        return None
    if empty.op != "ConstantOfShape" or empty.attr("value") is None or tuples.op != "Concat":
        return None
    if empty.attr("value").tolist() != [-1] or len(tuples.inputs) != 2:
        return None
    if tuples.attr("axis") not in (1, -1):
        return None
    ordered, position = map(_vector_of, tuples.inputs)
    sort = None if ordered is None else _ascending(ordered)
    if sort is None or position is None or scatter.inputs[2] is not sort.outputs[1]:
        return None
    unique = _numbered(ordered, position)
    sizes = empty.inputs[0].producer if empty.inputs[0] is not None else None
    if unique is None or sizes is None or sizes.op != "Concat" or len(sizes.inputs) != 2:
        return None
    number, most = sizes.inputs
    longest = most.producer if most is not None else None
    if number is None or number.shape != (1,) or longest is None or longest.op != "ReduceMax":
        return None
    keys = sort.inputs[0]
    fits = keys is not None and keys.dtype == "int64" and longest.inputs[0] is unique.outputs[3]
    return (keys, number) if fits and keys is not None else None


def _numbered(ordered: Value | None, position: Value) -> Node | None:
    """The Unique of sorted `ordered` if `position` tells equal elements apart.

    Consecutive numbers modulo how many they are, are all different.
    """
    mod = position.producer
    if mod is None or mod.op != "Mod":
        return None
    count, sizes = (value.producer for value in mod.operands)
    if count is None or count.op != "Range" or sizes is None or sizes.op != "Gather":
        return None
    if ints_of(count.inputs[0]) != [0] or ints_of(count.inputs[2]) != [1]:
        return None
    unique = sizes.inputs[0].producer if sizes.inputs[0] is not None else None
    if unique is None or unique.op != "Unique" or unique.inputs[0] is not ordered:
        return None
    if len(unique.outputs) < 4 or list(sizes.inputs) != list(unique.outputs[3:1:-1]):
        return None
    return unique


def _vector_of(column: Value | None) -> Value | None:
    """The vector that `column`, [n, 1], is a view of."""
    node = None if column is None else column.producer
    if node is None or node.op not in ("Reshape", "Unsqueeze") or column is None:
        return None
    vector = node.inputs[0]
    single = column.shape is not None and column.rank == 2 and column.shape[1] == 1
    return vector if single and vector is not None and vector.rank == 1 else None


def _ascending(ordered: Value) -> Node | None:
    """The TopK that sorts a whole vector upwards into `ordered`."""
    sort = ordered.producer
    if sort is None or sort.op != "TopK" or ordered is not sort.outputs[0]:
        return None
    keys = sort.inputs[0]
    whole = keys is not None and keys.rank == 1 and keys.shape == ordered.shape
    return sort if whole and not sort.attr("largest") and sort.attr("sorted", 1) else None


class RaiseSegmentSums(RewritePass):
    """Replaces a reduction of segments that sorts and pads them by one scatter that adds up.

    Needs the rows of each segment at places that are sorted, numbered by the counts of Unique, and
    padded by a row that changes nothing. So tf2onnx writes `segment_sum`, its means and extremes,
    and lookups of sparse ids. A sort and padding to the longest segment take longer than the sum.
    Fidelity: reassociates (rows of a segment are added up one after the other).

    Before:
        (float[N,4] x, int64[N] segment) => (float[S,4] y)
        <float[1,4] none = {0, 0, 0, 0}, int64[1] zero = {0}, int64[1] middle = {1},
         int64 first = {0}, int64 one = {1}, int64[2] column = {-1, 1}> {
            n = Shape(segment)
            sorted, order = TopK<axis=0, largest=0>(segment, n)
            u, at, inverse, counts = Unique<axis=0>(sorted)
            c = Gather(counts, inverse)
            k = Squeeze(n)
            r = Range(first, k, one)
            nth = Mod(r, c)
            a = Reshape(sorted, column)
            b = Reshape(nth, column)
            tuples = Concat<axis=1>(a, b)
            last = ReduceMax(segment, zero)
            number = Add(last, one)
            most = ReduceMax(counts, zero)
            sizes = Concat<axis=0>(number, most)
            empty = ConstantOfShape<value=int64[1] {-1}>(sizes)
            places = ScatterND(empty, tuples, order)
            padded = Concat<axis=0>(x, none)
            rows = Gather(padded, places)
            y = ReduceSum<keepdims=0>(rows, middle)
        }

    After:
        (float[N,4] x, int64[N] segment) => (float[S,4] y)
        <float[1,4] none = {0, 0, 0, 0}, int64[1] zero = {0}, int64 one = {1},
         int64[2] column = {-1, 1}> {
            last = ReduceMax(segment, zero)
            number = Add(last, one)
            z = ConstantOfShape<value=int64[1] {0}>(number)
            r = Reshape(z, column)
            f = Cast<to=1>(r)
            empty = Add(f, none)
            at = Reshape(segment, column)
            y = ScatterND<reduction="add">(empty, at, x)
        }
    """

    name = "raise-segment-sums"
    fidelity = Fidelity.REASSOCIATES
    rules = (padded_to_scatter, counts_to_scatter)
