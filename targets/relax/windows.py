"""Windows that slide over the spatial axes of a tensor: where they lie and what they read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax, te, tirx

from graphopt.ir import dims
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node, Value
from graphopt.targets.relax.lowering import Lowering, compute, int64
from graphopt.targets.relax.operands import bind_shape

Scalar = Any


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
    def of(lower: Lowering, node: Node, sizes: Sequence[Dim], kernel: Sequence[Dim]) -> Windows:
        """The windows of a convolution or pooling, as its attributes describe them.

        Raises:
            UnsupportedOpError: the size of the windows is known only at run time.
        """
        rank = len(sizes)
        if len(kernel) != rank or not all(isinstance(size, int) for size in kernel):
            raise lower.unsupported("the size of its windows is known only at run time")
        strides = tuple(node.attr("strides") or [1] * rank)
        dilations = tuple(node.attr("dilations") or [1] * rank)
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]  # type: ignore[operator]
        before, after = _padding(node, sizes, spans, strides)
        same = node.attr("auto_pad", "NOTSET").startswith("SAME")
        ceil = bool(node.attr("ceil_mode", 0))
        counts = [
            dims.ceildiv(size, stride) if same else _count(size, span, stride, b, a, ceil)
            for size, span, stride, b, a in zip(sizes, spans, strides, before, after)
        ]
        fixed: tuple[int, ...] = tuple(kernel)  # type: ignore[assignment]
        found = tuple(sizes), fixed, strides, dilations, tuple(before), tuple(after)
        return Windows(*found, tuple(counts))

    @property
    def rank(self) -> int:
        return len(self.sizes)

    @property
    def reach(self) -> tuple[Dim, ...]:
        """How many positions there are from the first one of the first window to the last."""
        return tuple(
            (count - 1) * stride + (k - 1) * dilation + 1
            for count, stride, k, dilation in zip(
                self.counts, self.strides, self.kernel, self.dilations
            )
        )

    def starts(self, lower: Lowering, windows: Sequence[Any]) -> list[Any]:
        """The first position of a window, given its number along each axis."""
        strided = (o * int64(stride) for o, stride in zip(windows, self.strides))
        return [at - int64(lower.dim(b)) for at, b in zip(strided, self.before)]

    def offsets(self, taps: Sequence[Any]) -> list[Any]:
        """How far from the start of a window its element `taps` lies, along each axis."""
        return [k * int64(d) for k, d in zip(taps, self.dilations)]

    def loops(self) -> list[Any]:
        """Reduction axes over the elements of a window."""
        return [te.reduce_axis((0, int64(k)), f"k{axis}") for axis, k in enumerate(self.kernel)]

    def inside(self, lower: Lowering, positions: Sequence[Any]) -> list[Scalar]:
        """What must hold for positions to be those of elements; nothing where none is outside."""
        conditions = []
        for at, size, before, reach in zip(positions, self.sizes, self.before, self.reach):
            if before != 0:
                conditions.append(at >= int64(0))
            if not dims.is_nonnegative(size + before - reach):
                conditions.append(at < int64(lower.dim(size)))
        return conditions

    def read(
        self, lower: Lowering, lead: Sequence[Any], load: Callable[..., Scalar], fill: Scalar
    ) -> Callable[..., Scalar]:
        """`load(*leading, *positions)` with `fill` outside; positions count from the padding on.

        Where there is padding, the padded tensor is a stage of its own.

        Args:
            lead: the sizes of the leading axes.
        """

        def element(*i: Any) -> Scalar:
            leading, padded = i[: len(lead)], i[len(lead) :]
            positions = [at - int64(lower.dim(b)) for at, b in zip(padded, self.before)]
            conditions = self.inside(lower, positions)
            value = load(*leading, *positions)
            return tirx.if_then_else(tirx.all(*conditions), value, fill) if conditions else value

        if not self.inside(lower, [int64(0)] * self.rank):
            return element
        extents = [lower.dim(extent) for extent in self.reach]
        return compute([*lead, *extents], element, name="padded")  # type: ignore[no-any-return]

    def bind(self, lower: Lowering, output: Value) -> list[Any]:
        """The shape of `output` [N, C, *counts], whose sizes may not have been known before."""
        lead = output.tensor.dims[:2]
        return bind_shape(lower, output, [lower.dim(d) for d in (*lead, *self.counts)])


def _padding(
    node: Node, sizes: Sequence[Dim], spans: Sequence[int], strides: Sequence[int]
) -> tuple[list[Dim], list[Dim]]:
    """The padding before and after, along each axis."""
    rank, auto = len(sizes), node.attr("auto_pad", "NOTSET")
    if not auto.startswith("SAME"):
        pads = [0] * (2 * rank) if auto == "VALID" else node.attr("pads") or [0] * (2 * rank)
        return list(pads[:rank]), list(pads[rank:])
    totals = [
        dims.maximum((dims.ceildiv(size, stride) - 1) * stride + span - size, 0)
        for size, span, stride in zip(sizes, spans, strides)
    ]
    smaller = [dims.floordiv(total, 2) for total in totals]
    larger = [total - half for total, half in zip(totals, smaller)]
    return (smaller, larger) if auto == "SAME_UPPER" else (larger, smaller)


def _count(size: Dim, span: int, stride: int, before: Dim, after: Dim, ceil: bool) -> Dim:
    """How many windows fit; with `ceil` one more may reach over the end, if it starts before it."""
    room = size + before + after - span
    if not ceil:
        return dims.floordiv(room, stride) + 1
    return dims.minimum(dims.ceildiv(room, stride), dims.ceildiv(size + before, stride) - 1) + 1


def finished(
    lower: Lowering, function: Callable[..., Scalar], shape: Sequence[Any], *args: relax.Expr
) -> relax.Expr:
    """Emit `function(*te_tensors, *indices)` for each element of `shape`."""
    return lower.te(
        lambda *t: compute(shape, lambda *i: function(*t, *i), name="finish"), *args, name="finish"
    )
