"""Windows that slide over the spatial axes of images: convolutions and poolings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.ir import dims
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.ir.infer import failure, tensor_type, type_rule
from graphopt.ir.types import TensorType, Type

# Where the weight is, for ops that have one.
_WEIGHT = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1}


@dataclass(frozen=True)
class Windows:
    """Windows over spatial axes; every field has one element per axis.

    Window `o` of an axis reads positions `o * stride - before + k * dilation` for `k < kernel`.

    Attributes:
        sizes: the sizes of what the windows slide over.
        before: how many positions of padding come before the first element.
        after: how many come after the last one.
        counts: how many windows there are.
    """

    sizes: tuple[Dim, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[Dim, ...]
    after: tuple[Dim, ...]
    counts: tuple[Dim, ...]

    @staticmethod
    def of(node: Node) -> Windows | None:
        """The windows of a convolution (over its output if transposed) or of a pooling.

        None if the rank of the input or the size of the windows is not known, or if the attributes
        do not fit the rank.
        """
        data = node.inputs[0]
        shape = data.type.shape if data and isinstance(data.type, TensorType) else None
        if shape is None or len(shape) < 3:
            return None
        found = _Walk.of(node, len(shape) - 2)
        if found is None:
            return None
        if node.op_type == "ConvTranspose":
            return _over_output(node, shape[2:], found)
        return _over_input(node, shape[2:], found)

    @property
    def reach(self) -> tuple[Dim, ...]:
        """How many positions there are from the first one of the first window to the last."""
        return tuple(
            (count - 1) * stride + (k - 1) * dilation + 1
            for count, stride, k, dilation in zip(
                self.counts, self.strides, self.kernel, self.dilations
            )
        )


@dataclass(frozen=True)
class _Walk:
    """The steps that windows are made of, and the padding that is given as numbers."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str

    @staticmethod
    def of(node: Node, rank: int) -> _Walk | None:
        kernel = _kernel(node)
        strides = tuple(node.attr("strides") or [1] * rank)
        dilations = tuple(node.attr("dilations") or [1] * rank)
        auto_pad = node.attr("auto_pad", "NOTSET")
        zeros = [0] * (2 * rank)
        pads = tuple(zeros if auto_pad == "VALID" else node.attr("pads") or zeros)
        if kernel is None or {len(kernel), len(strides), len(dilations)} != {rank}:
            return None
        if len(pads) != 2 * rank or min(*strides, *dilations, *kernel) < 1:
            return None
        return _Walk(kernel, strides, dilations, pads, auto_pad)

    @property
    def same(self) -> bool:
        return self.auto_pad.startswith("SAME")

    @property
    def spans(self) -> list[int]:
        """From the first to the last position of a window."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations)]

    def halves(self, totals: Sequence[Dim]) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:
        """Padding dealt out to both ends; SAME_UPPER puts the odd one at the end."""
        smaller = tuple(dims.floordiv(total, 2) for total in totals)
        larger = tuple(total - half for total, half in zip(totals, smaller))
        return (smaller, larger) if self.auto_pad == "SAME_UPPER" else (larger, smaller)


def _kernel(node: Node) -> tuple[int, ...] | None:
    """The size of the windows."""
    if node.op_type not in _WEIGHT:
        return tuple(node.attr("kernel_shape") or ()) or None
    weight = node.input(_WEIGHT[node.op_type])
    shape = weight.type.shape if weight and isinstance(weight.type, TensorType) else None
    sizes = [size for size in (shape or ())[2:] if isinstance(size, int)]
    return tuple(sizes) if shape is not None and len(sizes) == len(shape) - 2 else None


def _over_input(node: Node, sizes: Sequence[Dim], walk: _Walk) -> Windows:
    rank, spans, strides = len(sizes), walk.spans, walk.strides
    before: tuple[Dim, ...] = walk.pads[:rank]
    after: tuple[Dim, ...] = walk.pads[rank:]
    if walk.same:
        counts = [dims.ceildiv(size, stride) for size, stride in zip(sizes, strides)]
        needs = [(n - 1) * s + span for n, s, span in zip(counts, strides, spans)]
        before, after = walk.halves([dims.maximum(n - size, 0) for n, size in zip(needs, sizes)])
    else:
        ceil = bool(node.attr("ceil_mode", 0))
        paddings = zip(sizes, before, after)
        counts = [
            _count(size, b, a, span, stride, ceil)
            for (size, b, a), span, stride in zip(paddings, spans, strides)
        ]
    found = walk.kernel, strides, walk.dilations
    return Windows(tuple(sizes), *found, before, after, tuple(counts))


def _count(size: Dim, before: Dim, after: Dim, span: int, stride: int, ceil: bool) -> Dim:
    """How many windows fit; with `ceil` one may reach over the end, if it starts before it."""
    room = size + before + after - span
    if not ceil:
        return dims.floordiv(room, stride) + 1
    return dims.minimum(dims.ceildiv(room, stride), dims.ceildiv(size + before, stride) - 1) + 1


def _over_output(node: Node, counts: Sequence[Dim], walk: _Walk) -> Windows | None:
    """The windows over the output of a ConvTranspose that the elements of its input stand for."""
    rank, strides = len(counts), walk.strides
    extra = node.attr("output_padding") or [0] * rank
    wanted = list(node.attr("output_shape") or [])[-rank:]
    if len(extra) != rank or (wanted and len(wanted) != rank):
        return None
    steps = zip(counts, strides, walk.spans, extra)
    whole = [(count - 1) * stride + span + more for count, stride, span, more in steps]
    before: tuple[Dim, ...] = walk.pads[:rank]
    after: tuple[Dim, ...] = walk.pads[rank:]
    if wanted or walk.same:
        sizes = wanted or [count * stride for count, stride in zip(counts, strides)]
        before, after = walk.halves([dims.maximum(w - size, 0) for w, size in zip(whole, sizes)])
    else:
        sizes = [w - b - a for w, b, a in zip(whole, before, after)]
    found = walk.kernel, strides, walk.dilations
    return Windows(tuple(sizes), *found, before, after, tuple(counts))


# ------------------------------------------------------------------ type rules


@type_rule(*_WEIGHT, "MaxPool", "AveragePool", "LpPool")
def _windowed(node: Node) -> list[Type | None]:
    """The types of an op with windows.

    The schema's own rule loses symbolic sizes, and counts windows that start in the padding at the
    end (`ceil_mode`), which the specification of MaxPool ignores.
    """
    windows, data = Windows.of(node), node.inputs[0]
    if windows is None or data is None:
        return None  # type: ignore[return-value]  # leaves it to the schema's rule
    spatial = windows.sizes if node.op_type == "ConvTranspose" else windows.counts
    if any(isinstance(size, int) and size < 0 for size in spatial):
        raise failure(node, "its windows are larger than its input")
    shape = [data.tensor.dims[0], _channels(node, data), *spatial]
    types: list[Type | None] = [tensor_type(_dtype(node, data), shape), tensor_type("int64", shape)]
    return types[: len(node.outputs)]


def _channels(node: Node, data: Value) -> Dim:
    """The channels of the output; those of the input must fit the weight."""
    given = data.tensor.dims[1]
    if node.op_type not in _WEIGHT:
        return given
    weight, group = node.inputs[_WEIGHT[node.op_type]], node.attr("group", 1)
    assert weight is not None
    first, second = weight.tensor.dims[:2]
    transposed = node.op_type == "ConvTranspose"
    wanted, split = (first, given) if transposed else (second * group, first)
    if isinstance(given, int) and isinstance(wanted, int) and given != wanted:
        raise failure(node, f"its input has {given} channels, its weight wants {wanted}")
    if isinstance(split, int) and split % group:
        raise failure(node, f"{split} channels do not make {group} groups")
    return second * group if transposed else first


def _dtype(node: Node, data: Value) -> str:
    if node.op_type == "QLinearConv":
        zero = node.inputs[7]
        assert zero is not None
        return zero.dtype
    return "int32" if node.op_type == "ConvInteger" else data.dtype
