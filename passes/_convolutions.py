"""Convolutions along a sequence, or over all of it, as products of matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Node, Value
from graphopt.ir.windows import Windows
from graphopt.passes._shapes import reshaped
from graphopt.rewrite import NoMatch, Rewriter

_END = 2**63 - 1  # of an axis, for Slice


@dataclass(frozen=True)
class _Axes:
    """What a convolution does along each axis of its input.

    Attributes:
        alone: where it takes each position by itself.
        whole: where one window covers everything.
        along: the one axis along which windows slide.
    """

    alone: list[int]
    whole: list[int]
    along: int


def _axes_of(windows: Windows) -> _Axes | None:
    """None where windows slide along several axes, or skip positions."""
    alone, whole, sliding = [], [], []
    for k, (size, kernel) in enumerate(zip(windows.sizes, windows.kernel)):
        padded = windows.before[k] != 0 or windows.after[k] != 0
        if windows.strides[k] != 1 and windows.counts[k] != 1:
            return None
        if not padded and size == kernel and (windows.dilations[k] == 1 or kernel == 1):
            whole.append(k + 2)
        elif not padded and kernel == 1:
            alone.append(k + 2)
        else:
            sliding.append(k + 2)
    if len(sliding) > 1:
        return None
    along = (sliding or alone or whole)[-1]
    return _Axes([k for k in alone if k != along], [k for k in whole if k != along], along)


def convolution_as_product(rw: Rewriter, node: Node, join: bool) -> Value | NoMatch:
    """A product of the weights of a Conv with the positions of each window.

    Args:
        join: also where positions are in several windows, and are copied into each of them.
    """
    x, weights = node.inputs[0], node.const(1)
    windows, bias = Windows.of(node), node.input(2)
    assert x is not None and weights is not None
    if windows is None or node.attr("group") != 1 or x.dtype != "float32":
        return NoMatch("its rank is not known, it has groups, or is not float32")
    if bias is not None and bias.const is None:
        return NoMatch("its bias is computed")
    axes = _axes_of(windows)
    if axes is None:
        return NoMatch("its windows slide along several axes, or skip positions")
    k = axes.along - 2
    pads, count = (windows.before[k], windows.after[k]), windows.counts[k]
    known = isinstance(windows.sizes[k], int) and isinstance(count, int)
    if not all(isinstance(size, int) for size in pads) or not (known or join):
        return NoMatch("the axis that it slides along has no known size")
    alone = windows.kernel[k] == 1 and set(pads) == {0}
    if not (join or alone or (count == 1 and windows.dilations[k] == 1)):
        return NoMatch("positions are in several windows")
    # Elements of a window last, its positions next to each other.
    dims, within = x.tensor.dims, (1, *axes.whole)
    order = (0, *axes.alone, axes.along, *within)
    width = math.prod(weights.shape[axis] for axis in within)
    lead = tuple(dims[axis] for axis in (0, *axes.alone))
    rows = reshaped(rw, rw.op.Transpose(x, perm=list(order)), (*lead, dims[axes.along], width))
    if isinstance(rows, NoMatch):
        return rows
    joined = _windows_joined(rw, rows, windows, k, width)
    if isinstance(joined, NoMatch):
        return joined
    matrix = weights.transpose(axes.along, *within, *axes.alone, 0).reshape(-1, len(weights))
    product = rw.op.MatMul(joined, rw.const(np.ascontiguousarray(matrix)))
    if bias is not None:
        product = rw.op.Add(product, bias)
    # Back to channels first; axes that are taken whole have one position left.
    last = len(lead) + 1
    turned = rw.op.Transpose(product, perm=[0, last, *range(1, last)])
    places = sorted((*axes.alone, axes.along))
    if places[-1] != axes.along:
        held = (*axes.alone, axes.along)
        turned = rw.op.Transpose(turned, perm=[0, 1, *(2 + held.index(a) for a in places)])
    return reshaped(rw, turned, node.output.shape)


def _windows_joined(
    rw: Rewriter, rows: Value, windows: Windows, k: int, width: int
) -> Value | NoMatch:
    """The rows of each window side by side: [..., windows, kernel * width]."""
    kernel, dilation, count = windows.kernel[k], windows.dilations[k], windows.counts[k]
    before, after, axis = windows.before[k], windows.after[k], (rows.rank or 0) - 2
    assert isinstance(before, int) and isinstance(after, int)
    if kernel == 1 and before == after == 0:
        return rows
    if before != 0 or after != 0:
        zeros = [0] * axis
        pads = rw.ints(*zeros, before, 0, *zeros, after, 0)
        rows = rw.op.Pad(rows, pads)
    if count == 1 and dilation == 1:
        return reshaped(rw, rows, (*rows.tensor.dims[:-2], 1, kernel * width))
    if not isinstance(count, int):
        starts = [dilation * place for place in range(kernel)]
        ends = [-start or _END for start in reversed(starts)]
        parts = [
            rw.op.Slice(rows, rw.ints(start), rw.ints(end), rw.ints(axis))
            for start, end in zip(starts, ends)
        ]
        return rw.op.Concat(*parts, axis=axis + 1)
    places = np.add.outer(np.arange(count), np.arange(kernel) * dilation)
    taken = rw.op.Gather(rows, rw.const(places.astype(np.int64)), axis=axis)
    return reshaped(rw, taken, (*taken.tensor.dims[:-3], count, kernel * width))
