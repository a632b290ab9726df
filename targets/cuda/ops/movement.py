"""Concatenations, by the kernel of lookups or as a part of those around them; turned sequences."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from tvm import relax, te, tirx

from graphopt.ir.graph import Node
from graphopt.targets.cuda.kernels import lookup
from graphopt.targets.cuda.lowering import CudaLowering, lowers
from graphopt.targets.relax.loops import loops
from graphopt.targets.relax.lowering import compute, int64
from graphopt.targets.relax.operands import (
    describe,
    is_static,
    product,
    same_sizes,
    tensor_input,
)
from graphopt.targets.relax.ops.indexing import out_of_range
from graphopt.targets.relax.ops.movement import disagreements

_FEW = 8  # operands that an element is found among by comparisons


@lowers("Concat")
def _concat(lower: CudaLowering, node: Node) -> relax.Expr:
    axis = node.attr("axis") % len(node.output.tensor.dims)
    parts = [tensor_input(node, k) for k in range(len(node.inputs))]
    parts = [part for part in parts if part.tensor.dims[axis] != 0]
    if len(parts) == 1:
        return lower.expr(parts[0])
    checks = disagreements(lower, node, parts, axis)
    shape, sizes = lower.shape(node.output), [lower.shape(part) for part in parts]
    widths = [product(own[axis:]) for own in sizes]
    arguments = [lower.expr(part) for part in parts]
    if len(parts) <= _FEW or checks or not is_static(*widths) or node.output.dtype == "bfloat16":
        return _by_element(lower, arguments, shape, axis, checks)
    rows = product(shape[:axis])
    flat = [lower.reshape(own, [rows, width]) for own, width in zip(arguments, widths)]
    given = [lower.is_given(own) for own in flat]

    def body(*buffers: Any) -> None:
        *sources, out = buffers
        places = accumulate(widths, initial=0)
        lookup.lookup(
            [
                lookup.Part(source, place, aligned=not outside)
                for source, place, outside in zip(sources, places, given)
            ],
            out,
            lower.oob,
        )

    dtype = lower.checked_dtype(node.output.dtype)
    (joined,) = loops(lower, body, flat, [([rows, sum(widths)], dtype)])
    return lower.reshape(joined, shape)


def _by_element(
    lower: CudaLowering, arguments: list[relax.Expr], shape: list[Any], axis: int, checks: Any
) -> relax.Expr:
    """Each element from the operand that has it, which merges with what computes that."""

    def join(*sources: te.Tensor) -> te.Tensor:
        firsts = list(accumulate((int64(s.shape[axis]) for s in sources), initial=int64(0)))

        def element(*i: Any) -> Any:
            def read(k: int) -> Any:
                return sources[k](*i[:axis], i[axis] - firsts[k], *i[axis + 1 :])

            value = read(len(sources) - 1)
            for k in reversed(range(len(sources) - 1)):
                value = tirx.if_then_else(i[axis] < firsts[k + 1], read(k), value)
            return value

        return compute(shape, element, "concat")

    return lower.te(join, *arguments, checks=checks)


@lowers("ReverseSequence")
def _reverse_sequence(lower: CudaLowering, node: Node) -> relax.Expr:
    data, lengths = tensor_input(node, 0), tensor_input(node, 1)
    time, batch = node.attr("time_axis"), node.attr("batch_axis")
    sizes = data.tensor.dims
    steps, count = int64(lower.dim(sizes[time])), int64(lower.dim(lengths.tensor.dims[0]))
    same = same_sizes(lower, [sizes[batch]], lengths.tensor.dims)
    if lower.oob == "error":
        lower.demand(
            lambda k, own: tirx.all(own(k) >= 0, own(k).astype("int64") <= steps),
            [lower.expr(lengths)],
            count,
            out_of_range(node, sizes[time]),
        )

    def turn(x: te.Tensor, own: te.Tensor) -> te.Tensor:
        def element(*i: Any) -> Any:
            length = tirx.max(tirx.min(own(i[batch]).astype("int64"), steps), int64(0))
            at = tirx.if_then_else(i[time] < length, length - 1 - i[time], i[time])
            return x(*(at if axis == time else k for axis, k in enumerate(i)))

        return compute(x.shape, element, "turned")

    checks = [(same, f"{describe(node)}: it needs a length per sequence")]
    return lower.te(turn, lower.expr(data), lower.expr(lengths), checks=checks)
