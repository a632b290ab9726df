"""Pad: a border around a tensor, made of a constant or of the tensor itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import relax, te, tirx

from graphopt.ir.graph import Node
from graphopt.targets.relax.lowering import Check, Lowering, compute, int64, lowers
from graphopt.targets.relax.operands import bind_shape, describe, elements, is_static, tensor_input
from graphopt.targets.relax.scalar import const


@dataclass(frozen=True)
class _Axis:
    """How one axis is padded: `before` elements are added in front (removed where negative)."""

    size: Any
    before: Any
    after: Any

    @property
    def is_kept(self) -> bool:
        return is_static(self.before, self.after) and self.before == self.after == 0

    @property
    def padded(self) -> Any:
        return self.size + self.before + self.after

    @property
    def cropped(self) -> tuple[Any, Any]:
        """The first position that is not cut off, and how many are not.

        The border repeats only what is left of an axis that is cut at one end.
        """
        cut = [_maximum(-side, 0) for side in (self.before, self.after)]
        return cut[0], self.size - cut[0] - cut[1]


def _maximum(a: Any, b: int) -> Any:
    return max(a, b) if is_static(a) else tirx.max(a, int64(b))


@lowers("Pad")
def _pad(lower: Lowering, node: Node) -> relax.Expr:
    data, fill, mode = tensor_input(node, 0), node.input(2), node.attr("mode")
    axes, shape = _padded_axes(lower, node), lower.shape(data)
    padded = [axis.padded for axis in axes]
    checks = _checks(node, axes, mode)
    whole = bind_shape(lower, node.output, padded, checks)
    if all(axis.is_kept for axis in axes):
        return lower.expr(data)
    args = [lower.expr(data)]
    if fill is not None and mode == "constant":
        args.append(lower.reshape(lower.expr(fill), []))
    dtype = lower.checked_dtype(data.dtype)

    def emit(x: te.Tensor, *given: te.Tensor) -> te.Tensor:
        border = given[0]() if given else const(0, dtype)

        def element(*index: Any) -> Any:
            if mode != "constant":
                return x(*(_source(mode, axis, i) for axis, i in zip(axes, index)))
            places = [i - int64(axis.before) for axis, i in zip(axes, index)]
            inside = [
                tirx.all(place >= int64(0), place < int64(size))
                for place, size, axis in zip(places, shape, axes)
                if not axis.is_kept
            ]
            return tirx.if_then_else(tirx.all(*inside), x(*places), border)

        return compute(whole, element, "pad")

    return lower.te(emit, *args)


def _padded_axes(lower: Lowering, node: Node) -> list[_Axis]:
    shape, pads = lower.shape(tensor_input(node, 0)), elements(lower, tensor_input(node, 1))
    given = node.input(3)
    axes = list(range(len(shape))) if given is None else elements(lower, given)
    half = len(axes)
    if len(pads) != 2 * half:
        raise lower.unsupported(f"it has {len(pads)} pads for {half} axes")
    result = []
    for axis, size in enumerate(shape):
        sides = [_pad_of(axis, len(shape), axes, part) for part in (pads[:half], pads[half:])]
        result.append(_Axis(size, *sides))
    return result


def _pad_of(axis: int, rank: int, axes: list[Any], pads: list[Any]) -> Any:
    """The pad of `axis` where axes may be known only at run time; 0 if none is given."""
    if is_static(*axes):
        return next((pad for a, pad in zip(axes, pads) if a % rank == axis), 0)
    found = int64(0)
    for a, pad in zip(axes, pads):
        here = tirx.any(tirx.EQ(a, int64(axis)), tirx.EQ(a, int64(axis - rank)))
        found = tirx.Select(here, int64(pad), found)
    return found


def _checks(node: Node, axes: list[_Axis], mode: str) -> list[Check]:
    """What must hold of sizes: nothing is cut twice, and a border has something to repeat."""
    checks = []
    for k, axis in enumerate(axes):
        if axis.is_kept:
            continue
        left = int64(axis.cropped[1])
        holds = left >= int64(0)
        if mode != "constant":
            holds = tirx.any(left > int64(0), tirx.EQ(int64(axis.padded), int64(0)))
        if not (is_static(axis.size, axis.before, axis.after) and axis.cropped[1] > 0):
            checks.append((holds, f"{describe(node)}: axis {k} is too short for its pads"))
    return checks


def _source(mode: str, axis: _Axis, i: Any) -> Any:
    """Where a border that repeats the tensor reads."""
    if axis.is_kept:
        return i
    start, left = (int64(x) for x in axis.cropped)
    place = i - int64(axis.before) - start
    if mode == "wrap":
        return start + tirx.floormod(place, left)
    if mode == "edge":
        return start + tirx.min(tirx.max(place, int64(0)), left - int64(1))
    # Reflections repeat: 0 1 2 1 0 1 2 ... with this period, which is 1 for a single element.
    period = tirx.max(left * int64(2) - int64(2), int64(1))
    turned = tirx.floormod(place, period)
    return start + tirx.min(turned, period - turned)
