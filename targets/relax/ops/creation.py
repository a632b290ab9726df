"""Ops that make tensors from sizes and positions: constants, ranges, triangles, one-hot rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, te, tirx

from graphopt.ir.graph import Node
from graphopt.targets.relax import scalar
from graphopt.targets.relax.lowering import Lowering, compute, int64, lowers
from graphopt.targets.relax.operands import (
    bind_shape,
    describe,
    elements,
    static_ints,
    tensor_input,
)
from graphopt.targets.relax.scalar import const

Scalar = Any
_FAR = 1 << 40  # farther off than any element; the compiler overflows on the limits of int64


@lowers("Shape", "Size")
def _shape(lower: Lowering, node: Node) -> relax.Expr:
    # The compiler reads sizes off the graph's inputs; only where it cannot is this asked for.
    raise lower.unsupported(f"the rank of {tensor_input(node, 0).name!r} is known only at run time")


@lowers("ConstantOfShape")
def _constant_of_shape(lower: Lowering, node: Node) -> relax.Expr:
    fill = np.asarray(node.attr("value", np.zeros(1, np.float32))).reshape(-1)[0]
    dtype = lower.checked_dtype(node.output.dtype)
    given = elements(lower, tensor_input(node, 0))
    if all(lower.knows(dim) for dim in node.output.tensor.dims):
        shape = lower.shape(node.output)
    else:
        holds = tirx.all(tirx.const(True, "bool"), *(int64(size) >= int64(0) for size in given))
        shape = bind_shape(lower, node.output, given, [(holds, f"{describe(node)}: not a shape")])
    return lower.te(lambda: compute(shape, lambda *_: literal(fill, dtype), "fill"))


def literal(value: Any, dtype: str) -> Scalar:
    """A NumPy scalar as an expression."""
    if dtype == "uint64" and int(value) >= 2**63:
        return const(int(value) - 2**64, "int64").astype("uint64")
    return const(value.item(), dtype)


@lowers("Range")
def _range(lower: Lowering, node: Node) -> relax.Expr:
    operands = [lower.expr(tensor_input(node, k)) for k in range(3)]
    dtype = lower.checked_dtype(node.output.dtype)
    if not lower.knows(node.output.tensor.dims[0]):
        _bind_range(lower, node, operands)
    shape, work = lower.shape(node.output), scalar.working_dtype(dtype)

    def emit(start: te.Tensor, delta: te.Tensor) -> te.Tensor:
        def element(i: Any) -> Scalar:
            first, step = scalar.cast(start(), work), scalar.cast(delta(), work)
            return scalar.cast(first + scalar.cast(i, work) * step, dtype)

        return compute(shape, element, "range")

    return lower.te(emit, operands[0], operands[2])


def _bind_range(lower: Lowering, node: Node, operands: list[relax.Expr]) -> None:
    """Bind how many steps fit before the limit."""
    dtype = node.output.dtype

    def emit(*scalars: te.Tensor) -> te.Tensor:
        work = "float64" if scalar.is_float(dtype) else "int64"
        exact = scalar.working_dtype(dtype)
        start, limit, delta = (scalar.cast(scalar.cast(x(), exact), work) for x in scalars)
        zero = const(0, work)
        if scalar.is_float(dtype):
            steps = tirx.ceil((limit - start) / delta)
            # A step of zero or NaN gives -1, which is refused below.
            fits = tirx.all(steps < const(2.0**62, work), tirx.NE(delta, zero))
            count = tirx.Select(fits, tirx.max(steps, zero), const(-1.0, work)).astype("int64")
        else:
            ahead = delta > zero
            size = tirx.Select(ahead, delta, tirx.max(zero - delta, const(1, work)))
            gap = tirx.Select(ahead, limit - start, start - limit)
            steps = tirx.max(tirx.floordiv(gap - const(1, work), size) + const(1, work), zero)
            count = tirx.Select(tirx.EQ(delta, zero), const(-1, work), steps)
        return compute([1], lambda _: count, "steps")

    found = lower.bind_sizes([lower.fresh_size("steps")], lower.te(emit, *operands))
    check = (found[0] >= int64(0), f"{describe(node)}: its step is zero, or it never ends")
    bind_shape(lower, node.output, found, [check])


@lowers("EyeLike")
def _eye_like(lower: Lowering, node: Node) -> relax.Expr:
    shape, dtype = lower.shape(node.output), lower.checked_dtype(node.output.dtype)
    offset = const(max(-_FAR, min(node.attr("k"), _FAR)), "int64")

    def element(i: Any, j: Any) -> Scalar:
        return scalar.cast(tirx.EQ(j - i, offset), dtype)

    return lower.te(lambda: compute(shape, element, "eye"))


@lowers("Trilu")
def _trilu(lower: Lowering, node: Node) -> relax.Expr:
    data, offset, upper = tensor_input(node, 0), node.input(1), bool(node.attr("upper"))
    shape, dtype = lower.shape(data), lower.checked_dtype(data.dtype)
    known = [0] if offset is None else static_ints(offset)
    args = [lower.expr(data)]
    if known is None and offset is not None:
        args.append(lower.reshape(lower.expr(offset), []))

    def emit(x: te.Tensor, *given: te.Tensor) -> te.Tensor:
        def element(*i: Any) -> Scalar:
            k = given[0]() if known is None else const(max(-_FAR, min(known[0], _FAR)), "int64")
            distance = i[-1] - i[-2]
            kept = distance >= k if upper else distance <= k
            return tirx.Select(kept, x(*i), const(0, dtype))

        return compute(shape, element, "trilu")

    return lower.te(emit, *args)


@lowers("OneHot")
def _one_hot(lower: Lowering, node: Node) -> relax.Expr:
    indices, depth, values = (tensor_input(node, k) for k in range(3))
    rank = indices.tensor.rank
    assert rank is not None
    axis = node.attr("axis") % (rank + 1)
    size = elements(lower, depth)[0]
    shape = lower.shape(indices)
    check = (int64(size) >= int64(0), f"{describe(node)}: its depth is negative")
    checks = [] if isinstance(size, int) else [check]
    whole = bind_shape(lower, node.output, [*shape[:axis], size, *shape[axis:]], checks)

    def emit(ids: te.Tensor, off_on: te.Tensor) -> te.Tensor:
        def element(*i: Any) -> Scalar:
            found = ids(*i[:axis], *i[axis + 1 :])
            hot = tirx.Select(_is_hot(found, i[axis], int64(size)), int64(1), int64(0))
            return off_on(hot)

        return compute(whole, element, "one_hot")

    return lower.te(emit, lower.expr(indices), lower.expr(values))


def _is_hot(found: Scalar, position: Any, size: Any) -> Scalar:
    """Whether an index names `position`; it may count from the end, and out of range names none."""
    dtype = scalar.dtype_of(found)
    if dtype.startswith("uint"):
        return tirx.EQ(found.astype("uint64"), position.astype("uint64"))
    if scalar.is_float(dtype):
        work = scalar.working_dtype(dtype)
        whole = tirx.trunc(scalar.cast(found, work))
        names = [scalar.cast(place, work) for place in (position, position - size)]
        return tirx.any(*(tirx.EQ(whole, name) for name in names))
    wide = found.astype("int64")
    return tirx.any(tirx.EQ(wide, position), tirx.EQ(wide, position - size))
