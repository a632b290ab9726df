"""GridSample and RoiAlign: images read at positions that are computed at run time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, te, tirx
from tvm.script.ir_builder import tirx as T

from graphopt.ir.graph import Node, Value
from graphopt.targets.relax import reduction, scalar
from graphopt.targets.relax.interpolation import Filter, clamped, f32, filter_of
from graphopt.targets.relax.loops import loops, require, store
from graphopt.targets.relax.lowering import Lowering, compute, int64, lowers
from graphopt.targets.relax.operands import bind_shape, describe, tensor_input
from graphopt.targets.relax.scalar import const

Scalar = Any
Checked = Callable[[Lowering, Node, Value, Any], relax.Expr]
"""The image of each region, of those that an image number may be, given how many there are."""

# ------------------------------------------------------------------ GridSample

_GRID_CUBIC = -0.75
_NEAREST = Filter(0, lambda distance: f32(1))


@lowers("GridSample")
def _grid_sample(lower: Lowering, node: Node) -> relax.Expr:
    data, grid = tensor_input(node, 0), tensor_input(node, 1)
    dtype, source = lower.checked_dtype(data.dtype), lower.shape(data)
    if not scalar.is_float(dtype):
        raise lower.unsupported(f"an image of {dtype} is not compiled")
    shape = bind_shape(lower, node.output, [*source[:2], *lower.shape(grid)[1:-1]])
    sizes, mode = [int64(size) for size in source[2:]], node.attr("mode")
    kernel = _NEAREST if mode == "nearest" else filter_of(mode, _GRID_CUBIC)
    work = scalar.working_dtype(dtype)

    def emit(x: te.Tensor, g: te.Tensor) -> te.Tensor:
        positions = [_positions(node, g, axis, size) for axis, size in enumerate(sizes)]
        taps = [te.reduce_axis((0, int64(max(1, 2 * kernel.radius))), "tap") for _ in sizes]

        def element(n: Any, c: Any, *o: Any) -> Scalar:
            places, weight = [], f32(1)
            for position, tap in zip(positions, taps):
                at = position(n, *o)
                first = tirx.floor(at).astype("int64") - int64(max(0, kernel.radius - 1))
                places.append(first + tap.var)
                weight = weight * kernel.weight(f32(places[-1]) - at)
            value = _pixel(node, lambda *i: scalar.cast(x(n, c, *i), work), places, sizes, work)
            return reduction.total(value * weight.astype(work), axis=taps)

        return compute(shape, element, name="sample")

    result = lower.te(emit, lower.expr(data), lower.expr(grid))
    return _narrowed(lower, result, dtype)


def _narrowed(lower: Lowering, x: relax.Expr, dtype: str) -> relax.Expr:
    if str(x.ty.dtype) == dtype:
        return x
    return lower.te(
        lambda t: compute(t.shape, lambda *i: scalar.cast(t(*i), dtype), "narrow"), x, name="narrow"
    )


def _positions(node: Node, grid: te.Tensor, axis: int, size: Any) -> te.Tensor:
    """The coordinates along one axis of the image that a grid asks for, in elements."""
    # The last axis of a grid starts with the coordinate along the last axis of the image.
    column, one = int64(len(grid.shape) - 3 - axis), f32(1)
    limits = _limits(node, size)

    def position(*i: Any) -> Scalar:
        x = f32(grid(*i, column)) + one
        if node.attr("align_corners"):
            at = x / f32(2) * (f32(size) - one)
        else:
            at = (x * f32(size) - one) / f32(2)
        if node.attr("mode") == "nearest":
            at = tirx.nearbyint(at)
        if node.attr("padding_mode") == "reflection":
            return _reflected(at, *limits)
        # Farther out all elements are alike; a NaN or a huge number must not become an index.
        return tirx.max(tirx.min(at, f32(size) + f32(3)), f32(-4))

    return compute(grid.shape[:-1], position, name="position")


def _limits(node: Node, size: Any) -> tuple[Scalar, Scalar]:
    """The coordinates of the first and the last border of an image."""
    margin = f32(0) if node.attr("align_corners") else f32(0.5)
    return f32(0) - margin, f32(size) - f32(1) + margin


def _reflected(x: Scalar, low: Scalar, high: Scalar) -> Scalar:
    """`x` thrown back at `low` and `high` until it lies between them."""
    extent = high - low
    far = tirx.Select(x < low, low - x, x - high)
    period = tirx.Select(extent > f32(0), extent, f32(1))
    times = tirx.floor(far / period)
    rest = far - times * period
    even = tirx.EQ(times, f32(2) * tirx.floor(times / f32(2)))
    from_low = tirx.Select(x < low, even, tirx.Not(even))
    inner = tirx.Select(from_low, low + rest, high - rest)
    inside = tirx.all(x >= low, x <= high)
    return tirx.Select(inside, x, tirx.max(tirx.min(inner, high), low))


def _pixel(
    node: Node, load: Callable[..., Scalar], places: Sequence[Any], sizes: Sequence[Any], work: str
) -> Scalar:
    """The element of an image at a place that may lie outside of it."""
    padding = node.attr("padding_mode")
    if padding == "zeros":
        pairs = list(zip(places, sizes))
        inside = [at >= int64(0) for at in places] + [at < size for at, size in pairs]
        return tirx.if_then_else(tirx.all(*inside), load(*places), const(0, work))
    if padding == "reflection":
        limits = [_limits(node, size) for size in sizes]
        places = [_reflected(f32(p), *ends).astype("int64") for p, ends in zip(places, limits)]
    return load(*(clamped(at, size) for at, size in zip(places, sizes)))


# -------------------------------------------------------------------- RoiAlign


@lowers("RoiAlign")
def _roi_align(lower: Lowering, node: Node) -> relax.Expr:
    return roi_align(lower, node, _checked_images)


def roi_align(lower: Lowering, node: Node, checked_images: Checked) -> relax.Expr:
    """RoiAlign with a kernel that sees to it that each region is of an image that there is."""
    data, regions, images = (tensor_input(node, k) for k in range(3))
    dtype, source = lower.checked_dtype(data.dtype), lower.shape(data)
    samples, work = node.attr("sampling_ratio"), scalar.working_dtype(dtype)
    if samples <= 0:
        raise lower.unsupported("sampling_ratio 0 (as many samples as a region has elements)")
    average = node.attr("mode") == "avg"
    bins = [int64(node.attr(name)) for name in ("output_height", "output_width")]
    shape = bind_shape(lower, node.output, [lower.shape(regions)[0], source[1], *bins])
    sizes = [int64(size) for size in source[2:]]

    def emit(x: te.Tensor, rois: te.Tensor, image: te.Tensor) -> te.Tensor:
        sample = [te.reduce_axis((0, int64(samples)), f"sample{a}") for a in range(2)]

        def element(r: Any, c: Any, *o: Any) -> Scalar:
            steps = [o[a] * int64(samples) + sample[a].var for a in range(2)]
            spans = [_span(node, rois, r, axis) for axis in range(2)]
            at = [
                start + (f32(step) + f32(0.5)) * (extent / f32(count * int64(samples)))
                for (start, extent), step, count in zip(spans, steps, bins)
            ]
            terms = _bilinear(lambda *i: scalar.cast(x(image(r), c, *i), work), at, sizes, work)
            if average:
                return reduction.total(sum(terms[1:], terms[0]), axis=sample)
            greatest = terms[0]
            for term in terms[1:]:
                greatest = tirx.max(greatest, term)
            return reduction.greatest(greatest, axis=sample)

        return compute(shape, element, name="regions")

    checked = checked_images(lower, node, images, source[0])
    result = lower.te(emit, lower.expr(data), lower.expr(regions), checked)

    def finish(t: te.Tensor) -> te.Tensor:
        share = const(1 / samples**2 if average else 1, work)
        return compute(t.shape, lambda *i: scalar.cast(t(*i) * share, dtype), "finish")

    return lower.te(finish, result, name="finish")


def _span(node: Node, rois: te.Tensor, region: Any, axis: int) -> tuple[Scalar, Scalar]:
    """Where a region starts along an axis, and how long it is; its rows are x1, y1, x2, y2."""
    scale = f32(node.attr("spatial_scale"))
    aligned = node.attr("coordinate_transformation_mode") == "half_pixel"
    offset = f32(0.5) if aligned else f32(0)
    start, end = (f32(rois(region, int64(k - axis))) * scale - offset for k in (1, 3))
    extent = end - start
    return start, extent if aligned else tirx.max(extent, f32(1))


def _bilinear(
    load: Callable[..., Scalar], at: Sequence[Scalar], sizes: Sequence[Any], work: str
) -> list[Scalar]:
    """The four weighted elements around a position; zeros for one outside of the image."""
    inside, options = [], []
    for x, size in zip(at, sizes):
        inside += [x >= f32(-1), x <= f32(size)]
        inner = tirx.max(tirx.min(x, f32(size) - f32(1)), f32(0))
        low = clamped(tirx.floor(inner).astype("int64"), size)
        part = inner - f32(low)
        options.append([(low, f32(1) - part), (clamped(low + int64(1), size), part)])
    terms = [load(y, x) * (wy * wx).astype(work) for y, wy in options[0] for x, wx in options[1]]
    return [tirx.if_then_else(tirx.all(*inside), term, const(0, work)) for term in terms]


def _checked_images(lower: Lowering, node: Node, images: Value, batch: Any) -> relax.Expr:
    """The image of each region, checked at run time to exist."""
    count, text = lower.shape(images)[0], no_such_image(node)

    def body(source: Any, target: Any) -> None:
        with T.serial(int64(count)) as i:
            image = source[i].astype("int64")
            require(tirx.all(image >= int64(0), image < int64(batch)), text)
            store(target, [i], image)

    (checked,) = loops(lower, body, [lower.expr(images)], [([count], "int64")])
    return checked


def no_such_image(node: Node) -> str:
    """What the program says of a region of an image that there is not."""
    return f"{describe(node)}: a region is of an image that does not exist"
