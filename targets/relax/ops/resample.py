"""Resize: images at another size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax, te, tirx

from graphopt.ir.graph import Node
from graphopt.targets.relax import reduction, scalar
from graphopt.targets.relax.interpolation import Filter, clamped, f32, filter_of
from graphopt.targets.relax.lowering import Lowering, compute, int64, lowers
from graphopt.targets.relax.operands import bind_shape, chosen, elements, is_static, tensor_input
from graphopt.targets.relax.scalar import const
from graphopt.targets.relax.windows import finished

Scalar = Any


@dataclass(frozen=True)
class _Axis:
    """One axis of a Resize; all but `axis` are expressions.

    Attributes:
        size: the size of the input.
        out: the size of the output.
        scale: the output's size over the input's, as float32.
        width: the size of the output before it was rounded, as float32.
        roi: the first and last position of the region, as fractions of the input.
    """

    axis: int
    size: Any
    out: Any
    scale: Scalar
    width: Scalar
    roi: tuple[Scalar, Scalar] | None

    def position(self, mode: str, index: Any) -> Scalar:
        """Where in the input element `index` of the output lies, as float32."""
        x, last, one, half = f32(index), f32(self.size) - f32(1), f32(1), f32(0.5)
        single = tirx.EQ(self.width, one)
        if mode == "asymmetric":
            return x / self.scale
        if mode == "align_corners":
            step = last / tirx.Select(single, one, self.width - one)
            return tirx.Select(single, f32(0), x * step)
        if self.roi is not None:
            start, end = self.roi
            step = (end - start) * last / tirx.Select(single, one, self.width - one)
            middle = half * (start + end) * last
            return tirx.Select(single, middle, start * last + x * step)
        centred = (x + half) / self.scale - half
        if mode == "pytorch_half_pixel":
            return tirx.Select(self.out > int64(1), centred, f32(0))
        if mode == "half_pixel_symmetric":
            return centred + half * f32(self.size) * (one - f32(self.out) / self.width)
        return centred

    def outside(self, position: Scalar) -> Scalar:
        """True for positions that a region reaches outside of the input."""
        return tirx.any(position < f32(0), position > f32(self.size) - f32(1))


class _Resize:
    """What a Resize node asks for."""

    def __init__(self, lower: Lowering, node: Node) -> None:
        self.lower, self.node = lower, node
        self.data = tensor_input(node, 0)
        self.dtype = lower.checked_dtype(self.data.dtype)
        self.source = lower.shape(self.data)
        rank = len(self.source)
        self.axes = [a % rank for a in node.attr("axes") or range(rank)]
        self.mode = node.attr("coordinate_transformation_mode")
        self.roi = node.input(1) if self.mode == "tf_crop_and_resize" else None
        self.scales, sizes = node.input(2), node.input(3)
        self.sizes = None if sizes is None else elements(lower, sizes)
        self.ratio = self._ratio()
        scales = self.scales if sizes is None else None
        self.parameters = [lower.expr(v) for v in (scales, self.roi) if v is not None]
        self.shape = self._bound_shape()

    def _ratio(self) -> Scalar | None:
        """The scale of all axes where the aspect ratio is kept."""
        policy = self.node.attr("keep_aspect_ratio_policy")
        if self.sizes is None or policy == "stretch":
            return None
        ratios = [f32(size) / f32(self.source[a]) for a, size in zip(self.axes, self.sizes)]
        pick, result = tirx.min if policy == "not_larger" else tirx.max, ratios[0]
        for ratio in ratios[1:]:
            result = pick(result, ratio)
        return result

    def _bound_shape(self) -> list[Any]:
        lower, output = self.lower, self.node.output
        if all(lower.knows(dim) for dim in output.tensor.dims):
            return lower.shape(output)

        def emit(*parameters: te.Tensor) -> te.Tensor:
            found = [int64(size) for size in self.source]
            for place, axis in enumerate(self.axes):
                found[axis] = self._out(place, parameters)
            return compute([len(found)], lambda i: chosen(found, i), "sizes")

        vector = lower.te(emit, *self.parameters, name="sizes")
        names = [lower.fresh_size(f"resized{axis}_") for axis in range(len(self.source))]
        return bind_shape(lower, output, lower.bind_sizes(names, vector))

    def _out(self, place: int, parameters: Sequence[te.Tensor]) -> Any:
        size = self.source[self.axes[place]]
        if self.ratio is not None:
            return tirx.floor(self.ratio * f32(size) + f32(0.5)).astype("int64")
        if self.sizes is not None:
            return int64(self.sizes[place])
        return tirx.floor(f32(size) * f32(parameters[0](place))).astype("int64")

    def axis(self, place: int, parameters: Sequence[te.Tensor]) -> _Axis:
        """Axis number `place`, given the TE tensors of `parameters`."""
        axis = self.axes[place]
        size, out = int64(self.source[axis]), int64(self.shape[axis])
        if self.ratio is not None:
            scale, width = self.ratio, self.ratio * f32(size)
        elif self.sizes is not None:
            scale, width = f32(out) / f32(size), f32(out)
        else:
            scale = f32(parameters[0](place))
            width = scale * f32(size)
        roi = None
        if self.roi is not None:
            given = parameters[-1]
            roi = f32(given(place)), f32(given(place + len(self.axes)))
        return _Axis(axis, size, out, scale, width, roi)

    @property
    def changed(self) -> list[int]:
        """The places of the axes that are not just copied."""
        return [place for place in range(len(self.axes)) if not self._is_copied(place)]

    def _is_copied(self, place: int) -> bool:
        if self.roi is not None:
            return False
        if self.sizes is None:
            scales = self.scales.const if self.scales is not None else None
            return scales is not None and float(scales[place]) == 1.0
        dims = [value.tensor.dims[self.axes[place]] for value in (self.data, self.node.output)]
        return self.ratio is None and dims[0] == dims[1]


@lowers("Resize")
def _resize(lower: Lowering, node: Node) -> relax.Expr:
    resize = _Resize(lower, node)
    if node.attr("mode") == "nearest":
        return _nearest(lower, node, resize)
    if node.attr("mode") == "cubic" and not scalar.is_float(resize.dtype):
        raise lower.unsupported(f"mode 'cubic' of {resize.dtype} is not compiled")
    result = lower.expr(resize.data)
    for place in resize.changed:
        result = _along(lower, node, resize, place, result)
    if str(result.ty.dtype) == resize.dtype:
        return result
    return finished(lower, lambda t, *i: scalar.cast(t(*i), resize.dtype), resize.shape, result)


def _nearest(lower: Lowering, node: Node, resize: _Resize) -> relax.Expr:
    rounded = _ROUNDINGS[node.attr("nearest_mode")]
    filler = const(node.attr("extrapolation_value"), scalar.working_dtype(resize.dtype))

    def emit(x: te.Tensor, *parameters: te.Tensor) -> te.Tensor:
        axes = [resize.axis(place, parameters) for place in resize.changed]
        indices = {axis.axis: _nearest_indices(resize.mode, axis, rounded) for axis in axes}

        def element(*i: Any) -> Scalar:
            value = x(*(indices[a](o) if a in indices else o for a, o in enumerate(i)))
            if resize.roi is None:
                return value
            positions = [axis.position(resize.mode, i[axis.axis]) for axis in axes]
            outside = tirx.any(*(axis.outside(p) for axis, p in zip(axes, positions)))
            return tirx.Select(outside, scalar.cast(filler, resize.dtype), value)

        return compute(resize.shape, element, name="resize")

    return lower.te(emit, lower.expr(resize.data), *resize.parameters)


def _nearest_indices(mode: str, axis: _Axis, rounded: Callable[[Scalar], Scalar]) -> te.Tensor:
    def index(o: Any) -> Any:
        return clamped(rounded(axis.position(mode, o)).astype("int64"), axis.size)

    return compute([axis.out], index, name="index")


_ROUNDINGS: dict[str, Callable[[Scalar], Scalar]] = {
    "floor": tirx.floor,
    "ceil": tirx.ceil,
    "round_prefer_floor": lambda x: tirx.floor(x) + f32(x - tirx.floor(x) > f32(0.5)),
    "round_prefer_ceil": lambda x: tirx.floor(x) + f32(x - tirx.floor(x) >= f32(0.5)),
}


def _along(
    lower: Lowering, node: Node, resize: _Resize, place: int, source: relax.Expr
) -> relax.Expr:
    """`source` resized along one axis; float16, bfloat16 and integers become float32."""
    kernel = filter_of(node.attr("mode"), node.attr("cubic_coeff_a"))
    work = "float64" if resize.dtype == "float64" else "float32"
    number = resize.axes[place]
    shape = list(source.ty.shape.values)
    shape[number] = resize.shape[number]
    antialias = bool(node.attr("antialias"))
    reach = _reach(kernel.radius, resize.source[number], shape[number], antialias)

    def emit(x: te.Tensor, *parameters: te.Tensor) -> te.Tensor:
        axis = resize.axis(place, parameters)
        first, weights = _taps(node, resize, axis, kernel, reach)
        tap = te.reduce_axis((0, int64(2) * int64(reach)), "tap")

        def element(*i: Any) -> Scalar:
            o, at = i[number], list(i)
            at[number] = clamped(first(o) + tap.var, axis.size)
            weight = scalar.cast(weights(o, tap.var), work)
            return reduction.total(scalar.cast(x(*at), work) * weight, axis=[tap])

        result = compute(shape, element, name="resize")
        if resize.roi is None:
            return result
        filler = const(node.attr("extrapolation_value"), work)

        def filled(*i: Any) -> Scalar:
            outside = axis.outside(axis.position(resize.mode, i[number]))
            return tirx.Select(outside, filler, result(*i))

        return compute(shape, filled, name="filled")

    return lower.te(emit, source, *resize.parameters)


def _reach(radius: int, size: Any, out: Any, antialias: bool) -> Any:
    """How many elements on each side of a position have a weight, at most."""
    if not antialias:
        return radius
    if is_static(size, out):
        return -(-radius * max(size, out) // max(out, 1))
    longer, divisor = tirx.max(int64(size), int64(out)), tirx.max(int64(out), int64(1))
    return tirx.floordiv(int64(radius) * longer + divisor - int64(1), divisor)


def _taps(
    node: Node, resize: _Resize, axis: _Axis, kernel: Filter, reach: Any
) -> tuple[te.Tensor, te.Tensor]:
    """For each element of the output the first element it is made of, and the weights of all."""
    shrink = tirx.min(axis.scale, f32(1)) if node.attr("antialias") else f32(1)
    exclude = bool(node.attr("exclude_outside"))
    count = int64(2) * int64(reach)

    def first(o: Any) -> Any:
        position = tirx.floor(axis.position(resize.mode, o)).astype("int64")
        return position - int64(reach) + int64(1)

    starts = compute([axis.out], first, name="first")

    def weight(o: Any, k: Any) -> Scalar:
        index = starts(o) + k
        distance = f32(index) - axis.position(resize.mode, o)
        found = kernel.weight(distance * shrink)
        inside = tirx.all(index >= int64(0), index < axis.size)
        return tirx.Select(inside, found, f32(0)) if exclude else found

    weights = compute([axis.out, count], weight, name="weight")
    if not (exclude or node.attr("antialias")):
        return starts, weights
    k = te.reduce_axis((0, count), "k")
    sums = compute([axis.out], lambda o: reduction.total(weights(o, k.var), axis=[k]), name="sum")
    shares = compute([axis.out, count], lambda o, t: weights(o, t) / sums(o), name="share")
    return starts, shares
