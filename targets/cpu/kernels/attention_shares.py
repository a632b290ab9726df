"""Shares of attention: what becomes of the scores of some queries before values are added up."""

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from graphopt.targets.cpu.kernels.folding import reducing
from graphopt.targets.cpu.kernels.panels import Emitted
from graphopt.targets.kernels.activation import Activation
from graphopt.targets.kernels.elementary import exp_of_negative
from graphopt.targets.kernels.script import inlined

Axes = tuple[bool, bool, bool, bool]
"""Which axes of [b, heads, t, s] a tensor has; the others are of size 1."""
NO_AXES = (False,) * 4


@dataclass(frozen=True)
class Head:
    """One head: `dim` elements of a query or a key, `keys` of these, in vectors of `lanes` keys.

    `activation` makes shares of scores one by one; None for softmax. The scores of a query have
    room for `room` vectors, all `blocks` by default.
    """

    dim: int
    keys: Any
    lanes: int
    guarded: bool
    activation: Activation | None
    room: Any = None

    @property
    def blocks(self) -> Any:
        """Vectors of keys; those beyond the last key count for nothing."""
        return (self.keys + self.lanes - 1) // self.lanes

    @property
    def stride(self) -> Any:
        """From the scores of one query to those of the next."""
        return (self.blocks if self.room is None else self.room) * self.lanes


def sizes_of(axes: Axes | None, whole: tuple[Any, ...]) -> list[Any]:
    """The sizes of a tensor of some axes, where these have the sizes `whole`."""
    return [size if kept else 1 for kept, size in zip(axes or NO_AXES, whole)]


def _at(tensor: Any, axes: Axes | None, place: tuple[Any, ...]) -> Any:
    """The element of a tensor of some axes."""
    return tensor[tuple(index if kept else 0 for index, kept in zip(place, axes or NO_AXES))]


def sharing(
    head: Head, bias: Axes | None, factor: Axes | None, queries: int | None = None
) -> Emitted:
    """For use in a kernel: `shares(score, total, others, b, h, first, at, rows)`.

    score[at:at + rows], flat, of queries from `first` on become their shares, of `others`, which
    are the bias and the factor. Those of softmax add up to total[at:at + rows]; beyond the last key
    they are 0. Beyond the last of so many `queries` it takes what there is for that one.
    """
    add_bias, softmax = _adding(head, bias), _softmax(head)
    activate = _activating(head, factor)

    def existing(query: Any) -> Any:
        return query if queries is None else T.min(query, queries - 1)

    @inlined
    def shares(score, total, others, b, h, first, at, rows):
        added, factors = T.meta_var(others)
        for m in range(rows):
            add_bias(score, added, b, h, existing(first + m), at + m)
        if head.activation is None:
            softmax(score, total, at, rows)
        else:
            for m in range(rows):
                activate(score, factors, b, h, existing(first + m), at + m)

    return shares


def _adding(head: Head, bias: Axes | None) -> Emitted:
    """For use in a kernel: `add_bias(score, added, b, h, row, m)` for row m of the scores."""
    s = head.keys

    @inlined
    def add_bias(score, added, b, h, row, m):
        start = T.meta_var(m * head.stride)
        if bias is not None:
            for key in range(s):
                score[start + key] = score[start + key] + _at(added, bias, (b, h, row, key))

    return add_bias


def _activating(head: Head, factor: Axes | None) -> Emitted:
    """For use in a kernel: `activate(score, factors, b, h, row, m)` makes shares of row m."""
    lanes, blocks, s = head.lanes, head.blocks, head.keys
    activation = head.activation or Activation()

    @inlined
    def activate(score, factors, b, h, row, m):
        start = T.meta_var(m * head.stride)
        for block in range(blocks):
            for lane in T.vectorized(lanes):
                score[start + block * lanes + lane] = activation(
                    score[start + block * lanes + lane]
                )
        if factor is not None:
            for key in range(s):
                score[start + key] = score[start + key] * _at(factors, factor, (b, h, row, key))

    return activate


def _softmax(head: Head) -> Emitted:
    """For use in a kernel: `softmax(score, total, at, rows)`.

    It leaves shares of row m that add up to total[m]; those beyond the last key are 0. Each step
    is taken for all rows before the next one: a core waits for none of them.
    """
    lanes, blocks, s, stride = head.lanes, head.blocks, head.keys, head.stride
    greatest, add_up = reducing(lanes, T.max), reducing(lanes)

    @inlined
    def fill(vectors, rows, value):
        for m in T.unroll(rows):
            for lane in T.vectorized(lanes):
                vectors[m * lanes + lane] = T.float32(value)

    @inlined
    def softmax(score, total, at, rows):
        top = T.alloc_buffer((rows * lanes,), "float32")
        parts = T.alloc_buffer((rows * lanes,), "float32")
        for m in T.unroll(rows):
            for key in range(blocks * lanes - s):
                score[(at + m) * stride + s + key] = T.float32("-inf")
        fill(top, rows, "-inf")
        for block in range(blocks):
            for m in T.unroll(rows):
                for lane in T.vectorized(lanes):
                    top[m * lanes + lane] = T.max(
                        top[m * lanes + lane], score[(at + m) * stride + block * lanes + lane]
                    )
        for m in T.unroll(rows):
            greatest(top, m * lanes)
        fill(parts, rows, 0)
        for block in range(blocks):
            for m in T.unroll(rows):
                for lane in T.vectorized(lanes):
                    score[(at + m) * stride + block * lanes + lane] = exp_of_negative(
                        score[(at + m) * stride + block * lanes + lane] - top[m * lanes]
                    )
                for lane in T.vectorized(lanes):
                    parts[m * lanes + lane] = (
                        parts[m * lanes + lane] + score[(at + m) * stride + block * lanes + lane]
                    )
        for m in T.unroll(rows):
            add_up(parts, m * lanes)
            total[at + m] = T.Select(s == 0, T.float32(1), parts[m * lanes])

    return softmax
