"""GridSample and RoiAlign: images read at positions that are computed at run time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, te, tirx

from graphopt.ir.graph import Node
from graphopt.targets.relax import reduction, scalar
from graphopt.targets.relax.interpolation import Filter, clamped, f32, filter_of
from graphopt.targets.relax.loops import loops, require, store
from graphopt.targets.relax.lowering import Lowering, compute, int64, lowers
from graphopt.targets.relax.operands import bind_shape, describe, tensor_input
from graphopt.targets.relax.scalar import const

Scalar = Any


@lowers("GridSample")
def _grid_sample(lower: Lowering, node: Node) -> relax.Expr:
    data, grid = tensor_input(node, 0), tensor_input(node, 1)
    dtype, source = lower.checked_dtype(data.dtype), lower.shape(data)
    rank, mode = len(source) - 2, node.attr("mode")
    work = "float64" if dtype == "float64" else "float32"
    shape = bind_shape(lower, node.output, [*source[:2], *lower.shape(grid)[1:-1]])
    sizes = [int64(size) for size in source[2:]]
    nearest = mode == "nearest"
    kernel = filter_of(mode, -0.75) if not nearest else Filter(1, lambda d: f32(1))

    def emit(x: te.Tensor, g: te.Tensor) -> te.Tensor:
        def position(*i: Any) -> Scalar:
            # The last axis of a grid starts with the coordinate along the last axis of the image.
            (axis, *_), lead = i[-1:], i[:-1]
            return _chosen_position(node, sizes, axis, f32(g(*lead, int64(rank - 1) - axis)))

        positions = compute([shape[0], *shape[2:], rank], position, name="position")
        taps = [te.reduce_axis((0, 1 if nearest else 2 * kernel.radius), f"k{a}") for a in range(rank)]

        def element(n: Any, c: Any, *o: Any) -> Scalar:
            places, weight = [], f32(1)
            for axis, tap in enumerate(taps):
                at = positions(n, *o, int64(axis))
                first = int64(0) if nearest else int64(1 - kernel.radius)
                place = tirx.floor(at).astype("int64") + first + tap.var.astype("int64")
                places.append(place)
                weight = weight * (f32(1) if nearest else kernel.weight(f32(place) - at))
            value = _pixel(node, lambda *i: scalar.cast(x(n, c, *i), work), sizes, places, work)
            return reduction.total(value * weight.astype(work), axis=taps)

        return compute(shape, element, name="sample")

    result = lower.te(emit, lower.expr(data), lower.expr(grid))
    return result
