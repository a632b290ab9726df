"""Code for windows that slide over images: where they lie and what they read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, te, tirx

from graphopt.ir import dims
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Node
from graphopt.ir.windows import Windows
from graphopt.targets.relax.lowering import Check, Lowering, compute, int64
from graphopt.targets.relax.operands import bind_shape, describe

Scalar = Any


def windows_of(lower: Lowering, node: Node) -> Windows:
    """The windows of a convolution or pooling.

    Raises:
        UnsupportedOpError: their size, or the rank of what they slide over, is not known.
    """
    windows = Windows.of(node)
    if windows is None:
        raise lower.unsupported("the size of its windows is known only at run time")
    return windows


def starts(lower: Lowering, windows: Windows, window: Sequence[Any]) -> list[Any]:
    """The first position of a window, given its number along each axis."""
    strided = (o * int64(stride) for o, stride in zip(window, windows.strides))
    return [at - int64(lower.dim(b)) for at, b in zip(strided, windows.before)]


def offsets(windows: Windows, taps: Sequence[Any]) -> list[Any]:
    """How far from the start of a window its element `taps` lies, along each axis."""
    return [k * int64(d) for k, d in zip(taps, windows.dilations)]


def tap_axes(windows: Windows) -> list[Any]:
    """Reduction axes over the elements of a window."""
    return [te.reduce_axis((0, int64(k)), f"tap{axis}") for axis, k in enumerate(windows.kernel)]


def inside(lower: Lowering, windows: Windows, positions: Sequence[Any]) -> list[Scalar]:
    """What must hold for positions to be those of elements; nothing where none is outside."""
    conditions = []
    for at, size, before, reach in zip(positions, windows.sizes, windows.before, windows.reach):
        if before != 0:
            conditions.append(at >= int64(0))
        if not dims.is_nonnegative(size + before - reach):
            conditions.append(at < int64(lower.dim(size)))
    return conditions


def padded(
    lower: Lowering,
    windows: Windows,
    lead: Sequence[Any],
    load: Callable[..., Scalar],
    fill: Scalar,
) -> Callable[..., Scalar]:
    """`load(*leading, *positions)` with `fill` outside; positions count from the padding on.

    Where there is padding, the padded tensor is a stage of its own.

    Args:
        lead: the sizes of the leading axes.
    """

    def element(*i: Any) -> Scalar:
        leading, at = i[: len(lead)], i[len(lead) :]
        positions = [p - int64(lower.dim(b)) for p, b in zip(at, windows.before)]
        conditions = inside(lower, windows, positions)
        value = load(*leading, *positions)
        return tirx.if_then_else(tirx.all(*conditions), value, fill) if conditions else value

    if not inside(lower, windows, [int64(0)] * len(windows.sizes)):
        return element
    extents = [lower.dim(extent) for extent in windows.reach]
    stage: Callable[..., Scalar] = compute([*lead, *extents], element, name="padded")
    return stage


def reduced(
    windows: Windows, shape: Sequence[Any], read: Callable[..., Scalar], reducer: Any
) -> te.Tensor:
    """`read(n, c, *padded_positions)`, reduced over each window."""
    taps = tap_axes(windows)

    def element(n: Any, c: Any, *o: Any) -> Scalar:
        return reducer(read(n, c, *strided(windows, o, [tap.var for tap in taps])), axis=taps)

    return compute(shape, element, name="pool")


def strided(windows: Windows, window: Sequence[Any], taps: Sequence[Any]) -> list[Any]:
    """The position of an element of a window, counted from the padding on."""
    firsts = (o * int64(stride) for o, stride in zip(window, windows.strides))
    return [first + offset for first, offset in zip(firsts, offsets(windows, taps))]


def windowed_shape(
    lower: Lowering, node: Node, windows: Windows, checks: Sequence[Check] = ()
) -> list[Any]:
    """The shape of a node's outputs; the program stops where windows are larger than the input.

    Args:
        checks: what else must hold at run time.
    """
    text = f"{describe(node)}: its windows are larger than its input"
    counts = (*windows.counts, *windows.sizes)
    open_sizes = [d for d in counts if isinstance(d, Sym) and not dims.is_nonnegative(d)]
    needed = [(int64(lower.dim(dim)) >= int64(0), text) for dim in open_sizes]
    output = node.outputs[0]
    return bind_shape(lower, output, lower.shape(output), [*needed, *checks])


def finished(
    lower: Lowering, function: Callable[..., Scalar], shape: Sequence[Any], *args: relax.Expr
) -> relax.Expr:
    """Emit `function(*te_tensors, *indices)` for each element of `shape`."""
    return lower.te(
        lambda *t: compute(shape, lambda *i: function(*t, *i), name="finish"), *args, name="finish"
    )
