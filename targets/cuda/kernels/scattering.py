"""Updates of data at positions found in data, those of one place in the order that they have.

Few updates of a line are applied one after the other by a thread. Many are sorted by place first:
then each element has a thread, which finds the updates of its own by bisection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from graphopt.targets.cuda.kernels.blocks import each
from graphopt.targets.kernels import bounds
from graphopt.targets.kernels.bounds import OutOfBounds
from graphopt.targets.relax.loops import row_major
from graphopt.targets.relax.primfunc import int64

Change = Callable[..., Any]
"""What an element of a buffer becomes, of the buffer, its index and the update."""


def place_of(index: Any, size: Any, oob: OutOfBounds) -> Any:
    """Where an index of an axis writes, int64; `size` where it writes nowhere."""
    wide = index.astype("int64")
    place = bounds.row_of(wide, size, "clamp")
    writes = bounds.is_valid(wide, size) if oob == "zero" else size > 0
    return tirx.Select(writes, place, size)


class Lines:
    """The lines of a tensor: elements whose positions differ along one axis alone.

    Attributes:
        count: how many there are.
    """

    def __init__(self, shape: Sequence[Any], axis: int) -> None:
        self._axis = axis
        self._others = [int64(size) for k, size in enumerate(shape) if k != axis]
        self.count: Any = int64(1)
        for size in self._others:
            self.count = self.count * size

    def index(self, line: Any, k: Any) -> list[Any]:
        """The index of the k-th element of a line."""
        place = position(line, self._others)
        return [*place[: self._axis], k, *place[self._axis :]]

    def of(self, index: Sequence[Any]) -> Any:
        """The line of an element."""
        return row_major([i for k, i in enumerate(index) if k != self._axis], self._others)

    def shared(self, line: Any, *others: Any) -> Any:
        """How many elements a line has in all of some buffers, 0 where one lacks the line."""
        place = position(line, self._others)
        conditions = [
            i < int64(n)
            for buffer in others
            for i, n in zip(place, (n for k, n in enumerate(buffer.shape) if k != self._axis))
        ]
        least = int64(others[0].shape[self._axis])
        for buffer in others[1:]:
            least = tirx.min(least, int64(buffer.shape[self._axis]))
        return tirx.Select(tirx.all(tirx.const(True, "bool"), *conditions), least, int64(0))


def position(at: Any, sizes: Sequence[Any]) -> list[Any]:
    """The index of element `at` of `sizes`, in row-major order."""
    index: list[Any] = []
    for size in reversed(sizes):
        index.insert(0, at % size)
        at = at // size
    return index


def scatter(
    data: Any, ids: Any, updates: Any, out: Any, axis: int, oob: OutOfBounds, change: Change
) -> None:
    """The statements of the kernel: out = data, then each update applied at its place on its line.

    Of ids and updates that have other lines than the data, or more of them than of one another,
    nothing is read: to report them is the caller's.
    """
    lines, size = Lines(data.shape, axis), int64(data.shape[axis])

    def line(at: Any) -> None:
        with T.serial(int64(0), size) as k:
            T.buffer_store(out, data[tuple(lines.index(at, k))], lines.index(at, k))
        with T.serial(int64(0), T.bind(lines.shared(at, ids, updates))) as k:
            own = tuple(lines.index(at, k))
            place = T.bind(place_of(ids[own], size, oob))
            with T.If(place < size), T.Then():
                target = lines.index(at, place)
                T.buffer_store(out, change(out, target, updates[own]), target)

    each(lines.count, line)


def scatter_sorted(
    data: Any,
    order: Any,
    out: Any,
    line_and_place: Callable[[list[Any]], tuple[Any, Any]],
    length: Callable[[Any], Any],
    place: Callable[[Any, Any], Any],
    changed: Callable[[list[Any], Any], Any],
) -> None:
    """The statements of the kernel: out = data, then each element's updates applied in order.

    Args:
        order: int64 [lines, n], the updates of each line, sorted by place.
        line_and_place: of the index of an element.
        length: how many updates a line has.
        place: where an update goes, of its line and position.
        changed: what an element becomes, of its index and the position of the update.
    """
    sizes = [int64(size) for size in data.shape]
    count: Any = int64(1)
    for size in sizes:
        count = count * size

    def element(at: Any) -> None:
        index = [T.bind(i) for i in position(at, sizes)]
        line, own = line_and_place(index)
        end = T.bind(length(line))
        span = T.alloc_buffer([2], "int64", scope="local")
        T.buffer_store(out, data[tuple(index)], index)
        T.buffer_store(span, int64(0), [0])
        T.buffer_store(span, end, [1])
        with T.While(span[0] < span[1]):
            middle = T.bind((span[0] + span[1]) // 2)
            with T.If(place(line, order[line, middle]) < own):
                with T.Then():
                    T.buffer_store(span, middle + 1, [0])
                with T.Else():
                    T.buffer_store(span, middle, [1])
        T.buffer_store(span, end, [1])
        with T.While(span[0] < span[1]):
            update = T.bind(order[line, span[0]])
            with T.If(tirx.EQ(place(line, update), own)):
                with T.Then():
                    T.buffer_store(out, changed(index, update), index)
                    T.buffer_store(span, span[0] + 1, [0])
                with T.Else():
                    T.buffer_store(span, span[0], [1])

    each(count, element)
