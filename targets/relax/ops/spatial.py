"""Convolutions and what undoes them: Conv, ConvInteger, QLinearConv, ConvTranspose, Col2Im."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tvm import relax, te, tirx

from graphopt.ir.graph import Node, Value
from graphopt.ir.windows import Windows
from graphopt.targets.relax import reduction, scalar
from graphopt.targets.relax.lowering import Lowering, compute, int64, lowers
from graphopt.targets.relax.operands import bind_shape, describe, elements, product, tensor_input
from graphopt.targets.relax.scalar import const
from graphopt.targets.relax.windows import (
    finished,
    padded,
    strided,
    tap_axes,
    windowed_shape,
    windows_of,
)

Scalar = Any
# Reads an element of an operand: of its tensors, and where.
Load = Callable[..., Scalar]


@lowers("Conv")
def _conv(lower: Lowering, node: Node) -> relax.Expr:
    data, weight, bias = tensor_input(node, 0), tensor_input(node, 1), node.input(2)
    dtype = lower.checked_dtype(node.output.dtype)
    work = scalar.working_dtype(dtype)
    args = [lower.expr(data), lower.expr(weight)]
    result = convolution(lower, node, data, weight, args, work)
    return _biased(lower, result, bias, dtype)


def _biased(lower: Lowering, x: relax.Expr, bias: Value | None, dtype: str) -> relax.Expr:
    """`x[N, M, ...] + bias[M]`, as `dtype`."""
    work, args = str(x.ty.dtype), [] if bias is None else [lower.expr(bias)]
    if bias is not None and bias.tensor.dims != (int(x.ty.shape.values[1]),):
        raise lower.unsupported("its bias has not one element for each channel")
    if bias is None and work == dtype:
        return x

    def element(*operands: Any) -> Scalar:
        (t, *b), i = operands[: 1 + len(args)], operands[1 + len(args) :]
        value = t(*i)
        return scalar.cast(value + scalar.cast(b[0](i[1]), work) if b else value, dtype)

    return finished(lower, element, list(x.ty.shape.values), x, *args)


def convolution(
    lower: Lowering,
    node: Node,
    data: Value,
    weight: Value,
    args: Sequence[relax.Expr],
    work: str,
    load_data: Load | None = None,
    load_weight: Load | None = None,
) -> relax.Expr:
    """The convolution of `data[N, C, *sizes]` with `weight[M, C / group, *kernel]` in dtype `work`.

    `load_data(tensors, *indices)` reads an element of the data from the TE tensors of `args`; by
    default that is the first tensor, and the second for the weight. Padding counts as zero.
    """
    windows, group = windows_of(lower, node), node.attr("group", 1)
    outputs, depth = _filters(lower, weight)
    shape, lead = _shape(lower, node, windows, data, depth * group), lower.shape(data)[:2]
    read_data = load_data or (lambda tensors, *i: tensors[0](*i))
    read_weight = load_weight or (lambda tensors, *i: tensors[1](*i))

    def emit(*tensors: te.Tensor) -> te.Tensor:
        def load(*i: Any) -> Scalar:
            return scalar.cast(read_data(tensors, *i), work)

        read = padded(lower, windows, lead, load, const(0, work))
        channel, taps = te.reduce_axis((0, int64(depth)), "channel"), tap_axes(windows)

        def element(n: Any, m: Any, *o: Any) -> Scalar:
            k = [tap.var for tap in taps]
            at, c = strided(windows, o, k), channel.var
            if group > 1:
                c = tirx.floordiv(m, int64(outputs // group)) * int64(depth) + c
            factor = scalar.cast(read_weight(tensors, m, channel.var, *k), work)
            return reduction.total(read(n, c, *at) * factor, axis=[channel, *taps])

        return compute(shape, element, name="convolution")

    return lower.te(emit, *args)


def _filters(lower: Lowering, weight: Value) -> tuple[int, int]:
    """The first two sizes of a weight."""
    first, second = lower.shape(weight)[:2]
    if not (isinstance(first, int) and isinstance(second, int)):
        raise lower.unsupported("the number of its channels is known only at run time")
    return first, second


def _shape(lower: Lowering, node: Node, windows: Windows, data: Value, channels: int) -> list[Any]:
    """The shape of the output, checked at run time to belong to an input of `channels` channels."""
    given, checks = data.tensor.dims[1], []
    if given != channels:
        fits = tirx.EQ(int64(lower.dim(given)), int64(channels))
        checks.append((fits, f"{describe(node)}: its input must have {channels} channels"))
    return windowed_shape(lower, node, windows, checks)


# -------------------------------------------------------------------- integers


@lowers("ConvInteger")
def _conv_integer(lower: Lowering, node: Node) -> relax.Expr:
    data, weight = tensor_input(node, 0), tensor_input(node, 1)
    return _integer_convolution(lower, node, data, weight, node.input(2), node.input(3))


def _integer_convolution(
    lower: Lowering,
    node: Node,
    data: Value,
    weight: Value,
    zero: Value | None,
    w_zero: Value | None,
) -> relax.Expr:
    """The int32 convolution of `data - zero` with `weight - w_zero`, which may be one a channel."""
    _check_parameter(lower, zero, 1)
    _check_parameter(lower, w_zero, _filters(lower, weight)[0])
    args = [lower.expr(v) for v in (data, weight, zero, w_zero) if v is not None]
    places = iter(range(2, len(args)))
    load_data = _shifted(0, zero, next(places) if zero else 0)
    load_weight = _shifted(1, w_zero, next(places) if w_zero else 0)
    return convolution(lower, node, data, weight, args, "int32", load_data, load_weight)


def _shifted(place: int, zero: Value | None, zero_place: int) -> Load:
    def load(tensors: Sequence[te.Tensor], *i: Any) -> Scalar:
        element = scalar.cast(tensors[place](*i), "int32")
        if zero is None:
            return element
        return element - scalar.cast(tensors[zero_place](*_channel(zero, i[0])), "int32")

    return load


def _channel(value: Value, channel: Any) -> list[Any]:
    """The index into a parameter that is one number, or one a channel."""
    return [int64(0) if size == 1 else channel for size in value.tensor.dims]


def _check_parameter(lower: Lowering, value: Value | None, channels: int) -> None:
    """Refuse a parameter that is neither one number nor one for each of `channels`."""
    shape = () if value is None else value.tensor.dims
    if shape and shape not in ((1,), (channels,)):
        assert value is not None
        raise lower.unsupported(f"{value.name!r} has shape {list(map(str, shape))}")


@lowers("QLinearConv")
def _qlinear_conv(lower: Lowering, node: Node) -> relax.Expr:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (
        tensor_input(node, k) for k in range(8)
    )
    product = _integer_convolution(lower, node, x, w, x_zero, w_zero)
    bias, dtype = node.input(8), lower.checked_dtype(node.output.dtype)
    for value, count in ((x_scale, 1), (w_scale, _filters(lower, w)[0]), (y_scale, 1), (y_zero, 1)):
        _check_parameter(lower, value, count)
    low, high = (const(float(f(dtype)), "float32") for f in (scalar.lowest, scalar.highest))

    operands = [x_scale, w_scale, y_scale, y_zero, *([bias] if bias is not None else [])]

    def element(p: te.Tensor, *rest: Any) -> Scalar:
        tensors, i = rest[: len(operands)], rest[len(operands) :]
        xs, ws, ys, yz, *b = (t(*_channel(v, i[1])) for t, v in zip(tensors, operands))
        total = p(*i) + b[0] if b else p(*i)
        value = tirx.nearbyint(total.astype("float32") * (xs * ws / ys)) + yz.astype("float32")
        return scalar.cast(tirx.min(tirx.max(value, low), high), dtype)

    args = [lower.expr(value) for value in operands]
    return finished(lower, element, list(product.ty.shape.values), product, *args)


# ------------------------------------------------------------------ transposes


@lowers("ConvTranspose")
def _conv_transpose(lower: Lowering, node: Node) -> relax.Expr:
    data, weight, bias = tensor_input(node, 0), tensor_input(node, 1), node.input(2)
    dtype, group = lower.checked_dtype(node.output.dtype), node.attr("group", 1)
    work = scalar.working_dtype(dtype)
    windows = windows_of(lower, node)
    depth, outputs = _filters(lower, weight)
    shape = _shape(lower, node, windows, data, depth)
    batch = lower.shape(data)[0]

    def emit(x: te.Tensor, w: te.Tensor) -> te.Tensor:
        spread = _spread(lower, windows, [batch, depth], lambda *i: scalar.cast(x(*i), work), work)
        channel, taps = te.reduce_axis((0, int64(depth // group)), "channel"), tap_axes(windows)

        def element(n: Any, m: Any, *p: Any) -> Scalar:
            k = [loop.var for loop in taps]
            part, own = tirx.floordiv(m, int64(outputs)), tirx.floormod(m, int64(outputs))
            c = channel.var if group == 1 else part * int64(depth // group) + channel.var
            at = [i + far for i, far in zip(p, _reversed(windows, k))]
            factor = scalar.cast(w(c, m if group == 1 else own, *k), work)
            return reduction.total(spread(n, c, *at) * factor, axis=[channel, *taps])

        return compute(shape, element, name="convolution")

    args = [lower.expr(data), lower.expr(weight)]
    result = lower.te(emit, *args)
    return _biased(lower, result, bias, dtype)


def _reversed(windows: Windows, taps: Sequence[Any]) -> list[Any]:
    """How far before the end of its windows' reach an element of a window lies."""
    return [
        int64((size - 1) * dilation) - k * int64(dilation)
        for k, size, dilation in zip(taps, windows.kernel, windows.dilations)
    ]


def _spread(
    lower: Lowering, windows: Windows, lead: Sequence[Any], load: Callable[..., Scalar], work: str
) -> te.Tensor:
    """`load(*leading, *counts)` spread out by the strides, zeros between and around.

    Element `p` of the output and tap `k` of a window meet at position `p + reversed(k)`.
    """
    margins = _reversed(windows, [int64(0)] * len(windows.sizes))
    extents = [int64(lower.dim(size)) + margin for size, margin in zip(windows.sizes, margins)]

    def element(*i: Any) -> Scalar:
        conditions, at = [], []
        axes = zip(i[len(lead) :], margins, windows.before, windows.strides, windows.counts)
        for p, margin, before, stride, count in axes:
            place = p - margin + int64(lower.dim(before))
            at.append(tirx.floordiv(place, int64(stride)))
            conditions += [place >= int64(0), at[-1] < int64(lower.dim(count))]
            if stride > 1:
                conditions.append(tirx.EQ(tirx.floormod(place, int64(stride)), int64(0)))
        value = load(*i[: len(lead)], *at)
        return tirx.if_then_else(tirx.all(*conditions), value, const(0, work))

    return compute([*lead, *extents], element, name="spread")


@lowers("Col2Im")
def _col2im(lower: Lowering, node: Node) -> relax.Expr:
    data, image, block = (tensor_input(node, k) for k in range(3))
    dtype = lower.checked_dtype(node.output.dtype)
    work = scalar.working_dtype(dtype)
    sizes, kernel = ([int64(d) for d in elements(lower, v)] for v in (image, block))
    blocks = _Blocks.of(node, sizes, kernel)
    batch, columns, length = (int64(size) for size in lower.shape(data))
    channels = tirx.floordiv(columns, product(kernel))
    fits = tirx.all(
        tirx.EQ(product(blocks.counts), length), tirx.EQ(channels * product(kernel), columns)
    )
    checks = [(fits, f"{describe(node)}: its input does not hold the blocks of its image")]
    shape = bind_shape(lower, node.output, [batch, channels, *sizes], checks)

    def emit(x: te.Tensor) -> te.Tensor:
        taps = [te.reduce_axis((0, size), f"k{axis}") for axis, size in enumerate(kernel)]

        def element(n: Any, c: Any, *p: Any) -> Scalar:
            k = [loop.var for loop in taps]
            places, conditions = blocks.covering(p, k)
            value = scalar.cast(x(n, c, *k, *places), work)
            value = tirx.if_then_else(tirx.all(*conditions), value, const(0, work))
            return reduction.total(value, axis=taps)

        return compute(shape, element, name="col2im")

    split = lower.reshape(lower.expr(data), [batch, channels, *kernel, *blocks.counts])
    return _biased(lower, lower.te(emit, split), None, dtype)


class _Blocks(NamedTuple):
    """The blocks of an image along each of its axes; counts are expressions."""

    strides: list[int]
    dilations: list[int]
    before: list[int]
    counts: list[Any]

    @staticmethod
    def of(node: Node, sizes: Sequence[Any], kernel: Sequence[Any]) -> _Blocks:
        rank = len(sizes)
        strides, dilations = (node.attr(a) or [1] * rank for a in ("strides", "dilations"))
        pads = node.attr("pads") or [0] * (2 * rank)
        counts = []
        for axis, (size, k) in enumerate(zip(sizes, kernel)):
            span = (k - int64(1)) * int64(dilations[axis]) + int64(1)
            room = size + int64(pads[axis] + pads[axis + rank]) - span
            counts.append(tirx.floordiv(room, int64(strides[axis])) + int64(1))
        return _Blocks(strides, dilations, pads[:rank], counts)

    def covering(self, pixel: Sequence[Any], tap: Sequence[Any]) -> tuple[list[Any], list[Scalar]]:
        """The block of which `pixel` is element `tap`, and what must hold for there to be one."""
        places, conditions = [], []
        for p, k, s, d, before, count in zip(pixel, tap, *self):
            place = p + int64(before) - k * int64(d)
            places.append(tirx.floordiv(place, int64(s)))
            conditions += [place >= int64(0), places[-1] < count]
            conditions.append(tirx.EQ(tirx.floormod(place, int64(s)), int64(0)))
        return places, conditions
