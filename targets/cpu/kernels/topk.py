"""ONNX TopK: the best elements along an axis, in order."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from graphopt.targets.cpu.kernels.ordering import precedes
from graphopt.targets.kernels import script
from graphopt.targets.kernels.script import inlined
from graphopt.targets.kernels.storage import element_bytes, extent

TOO_MANY = "TopK: k is larger than the axis"
_BLOCK = 32
_COMPARED_IN_VECTORS = ("float32", "float64", "int32", "int64")


@dataclass(frozen=True)
class _Heap:
    """The elements kept of one slice [o, :, i], the worst on top, each with its position."""

    values: Any
    positions: Any
    o: Any
    i: Any
    dtype: str
    largest: bool

    def precedes(self, a, b):
        return precedes(a, b, self.dtype, self.largest)

    def value(self, p):
        return self.values[self.o, p, self.i]

    def position(self, p):
        return self.positions[self.o, p, self.i]

    def is_worse(self, p, q):
        """Boolean expression: the element at `p` comes after the one at `q`."""
        # Not by `Not`, which TVM moves into comparisons: it reads Not(a < b) as b <= a.
        a, b = self.value(p), self.value(q)
        later = T.Cast("int32", self.position(p) > self.position(q))
        tie_or_better = T.Select(self.precedes(a, b), T.int32(0), later)
        return T.Select(self.precedes(b, a), T.int32(1), tie_or_better) > 0


@inlined
def _put(heap, p, value, position):
    heap.values[heap.o, p, heap.i] = value
    heap.positions[heap.o, p, heap.i] = position


@inlined
def _swap(heap, p, q):
    value = heap.value(p)
    position = heap.position(p)
    _put(heap, p, heap.value(q), heap.position(q))
    _put(heap, q, value, position)


@inlined
def _sift_up(heap, start):
    place: T.int64 = start
    while place > 0:
        parent: T.int64 = (place - 1) // 2
        if heap.is_worse(place, parent):
            _swap(heap, place, parent)
            place = parent
        else:
            place = 0


@inlined
def _sift_down(heap, count):
    place: T.int64 = 0
    while place * 2 + 1 < count:
        child: T.int64 = place * 2 + 1
        if child + 1 < count:  # noqa: SIM102 (TVM evaluates both sides of `and`)
            if heap.is_worse(child + 1, child):
                child = child + 1
        if heap.is_worse(child, place):
            _swap(heap, child, place)
            place = child
        else:
            place = count


def _may_precede(heap, a, b):
    """int32, not 0 if `a` comes before `b`, or if one of them is NaN: for many elements at once.

    A Select where `Not` would do, which TVM moves into the comparison.
    """
    behind = a <= b if heap.largest else a >= b
    return T.Select(behind, T.int32(0), T.int32(1))


@inlined
def _take_better(heap, x, start, stop, k):
    for j in range(start, stop):
        if heap.precedes(x[heap.o, j, heap.i], heap.value(0)):
            _put(heap, 0, x[heap.o, j, heap.i], j)
            _sift_down(heap, k)


@inlined
def _take_better_by_blocks(heap, x, start, stop, k):
    blocks = T.meta_var((stop - start) // T.int64(_BLOCK))
    for block in range(blocks):
        first = T.meta_var(start + block * T.int64(_BLOCK))
        better: T.int32 = 0
        for j in range(_BLOCK):
            better = better | _may_precede(heap, x[heap.o, first + j, heap.i], heap.value(0))
        if better > 0:
            _take_better(heap, x, first, first + T.int64(_BLOCK), k)
    _take_better(heap, x, start + blocks * T.int64(_BLOCK), stop, k)


@inlined
def _select(heap, x, size, k, in_blocks):
    for j in range(k):
        _put(heap, j, x[heap.o, j, heap.i], j)
        _sift_up(heap, j)
    if in_blocks:
        _take_better_by_blocks(heap, x, k, size, k)
    else:
        _take_better(heap, x, k, size, k)
    for j in range(k - 1):
        _swap(heap, 0, k - 1 - j)
        _sift_down(heap, k - 1 - j)


@cache
def topk(
    outer: int | None,
    length: int | None,
    inner: int | None,
    k: int | None,
    dtype: str,
    largest: bool,
    message: str = TOO_MANY,
) -> PrimFunc:
    """Kernel (data[outer, length, inner]) -> (values[outer, k, inner], indices int64 likewise).

    The first `k` along the middle axis, best first; equal elements are in order of position, and
    NaN counts as larger than every number.  About length + k log(k) log(length) steps for data in
    random order.  An extent given as None is symbolic.  RuntimeError(`message`) if k > length.
    """
    before, after = extent("outer", outer), extent("inner", inner)
    size, kept = T.int64(extent("length", length)), T.int64(extent("k", k))
    align, index_align = element_bytes(dtype), element_bytes("int64")
    in_blocks = inner == 1 and dtype in _COMPARED_IN_VECTORS

    @script.prim_func(private=True, s_tir=True)
    def topk(data: T.handle, values: T.handle, indices: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        x = T.match_buffer(data, (before, size, after), dtype, align=align)
        best = T.match_buffer(values, (before, kept, after), dtype, align=align)
        at = T.match_buffer(indices, (before, kept, after), "int64", align=index_align)
        with T.sblock("topk"):  # Relax demands one of a kernel with one input
            assert kept <= size, message
            if kept > 0:
                for o, i in T.grid(before, after):
                    _select(_Heap(best, at, o, i, dtype, largest), x, size, kept, in_blocks)

    return topk
