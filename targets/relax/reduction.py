"""Reductions of TE tensors, with ONNX's treatment of NaN and of nothing to reduce."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import te, tirx

from graphopt.targets.relax import scalar
from graphopt.targets.relax.lowering import compute, int64

Reducer = Callable[..., Any]

total: Reducer = te.comm_reducer(lambda a, b: a + b, lambda t: scalar.const(0, t), name="sum")
product: Reducer = te.comm_reducer(lambda a, b: a * b, lambda t: scalar.const(1, t), name="prod")
greatest: Reducer = te.comm_reducer(
    scalar.maximum, lambda t: scalar.const(scalar.lowest(str(t)), t), name="max"
)
least: Reducer = te.comm_reducer(
    scalar.minimum, lambda t: scalar.const(scalar.highest(str(t)), t), name="min"
)


_IDENTITIES: dict[Reducer, Callable[[str], Any]] = {
    total: lambda t: scalar.const(0, t),
    product: lambda t: scalar.const(1, t),
    greatest: lambda t: scalar.const(scalar.lowest(t), t),
    least: lambda t: scalar.const(scalar.highest(t), t),
}
_SHARES = (256, 16)  # of a long reduction: how many parts it has, and how many these make
_LONG = 512  # elements, more than which are reduced in parts


@dataclass(frozen=True)
class Region:
    """What a reduction reads, axis by axis.

    Attributes:
        axes: the axes that are looped over; all of them where the choice is made at run time.
        kept: the size of each axis after the reduction (1 where it is reduced).
        looped: how many elements each of `axes` is reduced over (1 where it is kept).
        in_parts: reduce many elements in parts, which different threads can have.
    """

    axes: tuple[int, ...]
    kept: tuple[Any, ...]
    looped: tuple[Any, ...]
    in_parts: bool = False

    @staticmethod
    def over(shape: Sequence[Any], axes: Sequence[int]) -> Region:
        """The region of a reduction of `shape` over `axes` (which may count from the back)."""
        found = tuple(sorted({axis % len(shape) for axis in axes})) if shape else ()
        kept = tuple(1 if axis in found else size for axis, size in enumerate(shape))
        return Region(found, kept, tuple(shape[axis] for axis in found))

    @property
    def count(self) -> Any:
        """How many elements make one, as an int64 expression."""
        size: Any = int64(1)
        for extent in self.looped:
            size = size * int64(extent)
        return size

    def reduce(
        self, read: Callable[..., Any], reducer: Reducer, name: str, *, keepdims: bool = True
    ) -> te.Tensor:
        """`read(*indices)`, reduced; without `keepdims` the reduced axes are left out."""
        loops = [
            te.reduce_axis((0, int64(size)), f"k{a}") for a, size in zip(self.axes, self.looped)
        ]
        loop = dict(zip(self.axes, loops))
        left = [a for a in range(len(self.kept)) if keepdims or a not in loop]
        if self.in_parts and not self._is_short():
            return self._joined(self._parts(read, reducer, name), reducer, name, left)

        def element(*indices: Any) -> Any:
            full = dict(zip(left, indices))
            for axis, own in loop.items():
                # One of the two is 0: an axis is either reduced or kept.
                full[axis] = own.var if _is_one(self.kept[axis]) else full[axis] + own.var
            value = read(*(full[axis] for axis in range(len(self.kept))))
            return reducer(value, axis=loops) if loops else value

        return compute([self.kept[a] for a in left], element, name=name)

    def _is_short(self) -> bool:
        size = prod(extent if isinstance(extent, int) else _LONG + 1 for extent in self.looped)
        return size <= _LONG

    def _parts(self, read: Callable[..., Any], reducer: Reducer, name: str) -> te.Tensor:
        """`_SHARES[-1]` parts of the result, in one more axis at the end.

        Neighbours read neighbouring elements, and how elements are divided follows from their
        number alone.
        """
        count = self.count

        def first(index: Sequence[Any], at: Any) -> Any:
            inside, full = tirx.min(at, count - int64(1)), dict(enumerate(index))
            for axis, extent in reversed(list(zip(self.axes, self.looped))):
                full[axis] = tirx.truncmod(inside, int64(extent))
                inside = tirx.truncdiv(inside, int64(extent))
            value = read(*(full[axis] for axis in range(len(self.kept))))
            nothing = _IDENTITIES[reducer](str(value.ty.dtype))
            return tirx.if_then_else(at < count, value, nothing)

        source: Callable[[Sequence[Any], Any], Any] = first
        size = count
        for shares in _SHARES:
            parts = self._divided(source, size, shares, reducer, name)
            source, size = _reader(parts), int64(shares)
        return parts

    def _divided(
        self, source: Callable[..., Any], size: Any, shares: int, reducer: Reducer, name: str
    ) -> te.Tensor:
        """What `shares` threads find of `size` elements."""
        steps = (size + int64(shares - 1)) // int64(shares)
        step = te.reduce_axis((0, steps), "step")

        def part(*index: Any) -> Any:
            at = step.var * int64(shares) + index[-1]
            return reducer(source(index[:-1], at), axis=step)

        return compute([*self.kept, shares], part, name=f"{name}_{shares}")

    def _joined(
        self, parts: te.Tensor, reducer: Reducer, name: str, left: Sequence[int]
    ) -> te.Tensor:
        share = te.reduce_axis((0, int64(_SHARES[-1])), "share")

        def element(*indices: Any) -> Any:
            full = dict(zip(left, indices))
            place = [full.get(axis, int64(0)) for axis in range(len(self.kept))]
            return reducer(parts(*place, share.var), axis=share)

        return compute([self.kept[a] for a in left], element, name=name)

    def at(self, reduced: te.Tensor, indices: Sequence[Any]) -> Any:
        """The element of what `reduce` gave (with `keepdims`) that belongs to a full index."""
        return reduced(*(self._kept_index(axis, i) for axis, i in enumerate(indices)))

    def _kept_index(self, axis: int, index: Any) -> Any:
        if axis not in self.axes:
            return index
        single = _is_one(self.kept[axis])
        return int64(0) if single else tirx.min(index, self.kept[axis] - int64(1))


def _reader(parts: te.Tensor) -> Callable[[Sequence[Any], Any], Any]:
    return lambda index, at: parts(*index, at)


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def working(tensor: te.Tensor) -> Callable[..., Any]:
    """Reads elements of `tensor` in their working dtype."""
    dtype = scalar.working_dtype(str(tensor.dtype))
    return lambda *indices: scalar.cast(tensor(*indices), dtype)
