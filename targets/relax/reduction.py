"""Reductions of TE tensors, with ONNX's treatment of NaN and of nothing to reduce."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Region:
    """What a reduction reads, axis by axis.

    Attributes:
        axes: the axes that are looped over; all of them where the choice is made at run time.
        kept: the size of each axis after the reduction (1 where it is reduced).
        looped: how many elements each of `axes` is reduced over (1 where it is kept).
    """

    axes: tuple[int, ...]
    kept: tuple[Any, ...]
    looped: tuple[Any, ...]

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

        def element(*indices: Any) -> Any:
            full = dict(zip(left, indices))
            for axis, own in loop.items():
                # One of the two is 0: an axis is either reduced or kept.
                full[axis] = own.var if _is_one(self.kept[axis]) else full[axis] + own.var
            value = read(*(full[axis] for axis in range(len(self.kept))))
            return reducer(value, axis=loops) if loops else value

        return compute([self.kept[a] for a in left], element, name=name)

    def at(self, reduced: te.Tensor, indices: Sequence[Any]) -> Any:
        """The element of what `reduce` gave (with `keepdims`) that belongs to a full index."""
        return reduced(*(self._kept_index(axis, i) for axis, i in enumerate(indices)))

    def _kept_index(self, axis: int, index: Any) -> Any:
        if axis not in self.axes:
            return index
        single = _is_one(self.kept[axis])
        return int64(0) if single else tirx.min(index, self.kept[axis] - int64(1))


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def working(tensor: te.Tensor) -> Callable[..., Any]:
    """Reads elements of `tensor` in their working dtype."""
    dtype = scalar.working_dtype(str(tensor.dtype))
    return lambda *indices: scalar.cast(tensor(*indices), dtype)
