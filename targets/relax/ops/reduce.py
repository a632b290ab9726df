"""Reductions, ArgMax and ArgMin, CumSum, and the softmax family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, te, tirx
from tvm.script import tirx as T

from graphopt.ir.content import known_ints
from graphopt.ir.dims import product as dim_product
from graphopt.ir.graph import Node, Value
from graphopt.targets.relax import reduction, scalar
from graphopt.targets.relax.lowering import Lowering, int64, lowers
from graphopt.targets.relax.scalar import const, dtype_of

Scalar = Any

# What each op reduces, with what, and what it makes of the result and the number of elements.
_BEFORE: dict[str, Callable[[Scalar], Scalar]] = {
    "ReduceSumSquare": lambda x: x * x,
    "ReduceL2": lambda x: x * x,
    "ReduceL1": scalar.absolute,
}
_REDUCER = {
    "ReduceMax": reduction.greatest,
    "ReduceMin": reduction.least,
    "ReduceProd": reduction.product,
}
_AFTER: dict[str, Callable[[Scalar, Scalar], Scalar]] = {
    "ReduceL2": lambda x, n: tirx.sqrt(x),
    "ReduceLogSum": lambda x, n: tirx.log(x),
    "ReduceMean": lambda x, n: scalar.divide(x, scalar.cast(n, dtype_of(x))),
}
_PLAIN = ("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceMean")


def _working(op: str, dtype: str) -> str:
    """The dtype to accumulate in."""
    if dtype == "bool":
        return "uint8"
    if scalar.is_float(dtype):
        return scalar.working_dtype(dtype)
    if op in ("ReduceL2", "ReduceLogSum", "ReduceLogSumExp"):
        return "float64"
    return "int64" if op == "ReduceMean" else dtype


def _axes(lower: Lowering, node: Node, data: Value) -> list[int]:
    """The axes that a Reduce op reduces over.

    Raises:
        UnsupportedOpError: they are known only at run time.
    """
    rank = len(lower.shape(data))
    given = node.input(1)
    axes = [] if given is None else known_ints(given.content)
    if axes is None:
        raise lower.unsupported("its axes are known only at run time")
    if not axes:
        return [] if node.attr("noop_with_empty_axes") else list(range(rank))
    return reduction.axes_of(rank, axes)


@lowers(*_PLAIN, *_REDUCER)
def _reduce(lower: Lowering, node: Node) -> relax.Expr:
    data, op = _data(node), node.op_type
    axes, shape, dtype = _axes(lower, node, data), lower.shape(data), node.output.dtype
    work = _working(op, lower.checked_dtype(dtype))
    before, after = _BEFORE.get(op, lambda x: x), _AFTER.get(op)
    reducer = _REDUCER.get(op, reduction.total)

    def reduce(x: te.Tensor) -> te.Tensor:
        def read(*i: Any) -> Scalar:
            return before(scalar.cast(x(*i), work))

        keepdims = bool(node.attr("keepdims"))
        return reduction.reduced(read, shape, axes, reducer, "reduce", keepdims=keepdims)

    result = lower.te(reduce, lower.expr(data))
    if after is None and work == dtype:
        return result
    elements = reduction.count(lower, shape, axes)
    return _each(lower, result, dtype, lambda x: after(x, elements) if after else x)


def _data(node: Node) -> Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _each(
    lower: Lowering, x: relax.Expr, dtype: str, function: Callable[[Scalar], Scalar]
) -> relax.Expr:
    """Emit `function` of every element of `x`, as `dtype`."""

    def compute(t: te.Tensor) -> te.Tensor:
        return te.compute(
            t.shape, lambda *i: scalar.cast(function(t(*i)), dtype), name="finish"
        )

    return lower.te(compute, x)


@lowers("ReduceLogSumExp")
def _reduce_log_sum_exp(lower: Lowering, node: Node) -> relax.Expr:
    data, dtype = _data(node), node.output.dtype
    axes, shape = _axes(lower, node, data), lower.shape(data)
    work = _working(node.op_type, lower.checked_dtype(dtype))
    target = lower.shape(node.output)
    keepdims = bool(node.attr("keepdims"))

    def compute(x: te.Tensor) -> te.Tensor:
        def read(*i: Any) -> Scalar:
            return scalar.cast(x(*i), work)

        peak = reduction.reduced(read, shape, axes, reduction.greatest, "peak")

        # Without a finite peak (all -inf, an inf, a NaN, nothing at all) nothing is subtracted.
        def offset(*i: Any) -> Scalar:
            top = reduction.at(peak, axes, i)
            finite = tirx.abs(top) <= const(_LARGEST[work], work)
            return tirx.Select(finite, top, const(0, work))

        sums = reduction.reduced(
            lambda *i: tirx.exp(read(*i) - offset(*i)), shape, axes, reduction.total, "sums"
        )

        def element(*i: Any) -> Scalar:
            full = list(i) if keepdims else _with_ones(i, axes, len(shape))
            value = tirx.log(reduction.at(sums, axes, full)) + offset(*full)
            return scalar.cast(value, dtype)

        return te.compute(target, element, name="log_sum_exp")

    return lower.te(compute, lower.expr(data))


_LARGEST = {"float32": 3.4028234663852886e38, "float64": 1.7976931348623157e308}


def _with_ones(indices: Sequence[Any], axes: Sequence[int], rank: int) -> list[Any]:
    position = iter(indices)
    return [int64(0) if axis in axes else next(position) for axis in range(rank)]


@lowers("ArgMax", "ArgMin")
def _arg(lower: Lowering, node: Node) -> relax.Expr:
    data = _data(node)
    shape, dtype = lower.shape(data), scalar.working_dtype(lower.checked_dtype(data.dtype))
    axes = reduction.axes_of(len(shape), [node.attr("axis")])
    extreme = reduction.greatest if node.op_type == "ArgMax" else reduction.least
    last, keepdims = bool(node.attr("select_last_index")), bool(node.attr("keepdims"))

    def compute(x: te.Tensor) -> te.Tensor:
        read = reduction.working(x)
        best = reduction.reduced(read, shape, axes, extreme, "best")

        def position(*i: Any) -> Scalar:
            value, wanted = read(*i), reduction.at(best, axes, i)
            found = tirx.EQ(value, wanted)
            if scalar.is_float(dtype):  # the extreme of values with a NaN is the NaN
                found = tirx.any(found, tirx.isnan(value))
            miss = const(-1 if last else scalar.highest("int64"), "int64")
            return tirx.Select(found, i[axes[0]].astype("int64"), miss)

        pick = reduction.greatest if last else reduction.least
        return reduction.reduced(position, shape, axes, pick, "position", keepdims=keepdims)

    return lower.te(compute, lower.expr(data))


# ------------------------------------------------------------------ running sums


@lowers("CumSum")
def _cumsum(lower: Lowering, node: Node) -> relax.Expr:
    data, given = _data(node), node.inputs[1]
    assert given is not None
    axes = known_ints(given.content)
    if axes is None:
        raise lower.unsupported("its axis is known only at run time")
    sizes, dtype = data.tensor.dims, lower.checked_dtype(data.dtype)
    axis = axes[0] % len(sizes)
    flat = [dim_product(sizes[:axis]), sizes[axis], dim_product(sizes[axis + 1 :])]
    shape = [lower.dim(dim) for dim in flat]
    kernel = _running_sum(dtype, bool(node.attr("exclusive")), bool(node.attr("reverse")))
    (result,) = lower.kernel(kernel, [lower.reshape(lower.expr(data), shape)], [(shape, dtype)])
    return lower.reshape(result, lower.shape(node.output))


def _running_sum(dtype: str, exclusive: bool, reverse: bool) -> tirx.PrimFunc:
    """Kernel (x[outer, n, inner]) -> out of the same shape: sums along the middle axis."""
    work = scalar.working_dtype(dtype)

    @T.prim_func(private=True, s_tir=True)
    def cumsum(x: T.handle, out: T.handle):
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})
        outer, n, inner = T.int64(), T.int64(), T.int64()
        source = T.match_buffer(x, (outer, n, inner), dtype)
        target = T.match_buffer(out, (outer, n, inner), dtype)
        for i, j in T.grid(outer, inner):
            so_far = T.decl_buffer((1,), work, scope="local")
            so_far[0] = T.Cast(work, 0)
            for k in range(n):
                at = T.meta_var(n - 1 - k if reverse else k)
                before = T.meta_var(scalar.cast(so_far[0], dtype))
                if exclusive:
                    target[i, at, j] = before
                so_far[0] = so_far[0] + T.Cast(work, source[i, at, j])
                if not exclusive:
                    target[i, at, j] = before

    return cumsum


# --------------------------------------------------------------------- softmax


def _softmax_axes(lower: Lowering, node: Node) -> list[int]:
    return reduction.axes_of(len(lower.shape(_data(node))), [node.attr("axis", -1)])


@lowers("Softmax", "LogSoftmax")
def _softmax(lower: Lowering, node: Node) -> relax.Expr:
    data, axes = _data(node), _softmax_axes(lower, node)
    shape, dtype = lower.shape(data), lower.checked_dtype(data.dtype)

    def compute(x: te.Tensor) -> te.Tensor:
        read = reduction.working(x)
        peak = reduction.reduced(read, shape, axes, reduction.greatest, "peak")

        def shifted(*i: Any) -> Scalar:
            return read(*i) - reduction.at(peak, axes, i)

        if node.op_type == "LogSoftmax":
            sums = reduction.reduced(
                lambda *i: tirx.exp(shifted(*i)), shape, axes, reduction.total, "sums"
            )

            def element(*i: Any) -> Scalar:
                return shifted(*i) - tirx.log(reduction.at(sums, axes, i))

        else:
            powers = te.compute(shape, lambda *i: tirx.exp(shifted(*i)), name="powers")
            sums = reduction.reduced(powers, shape, axes, reduction.total, "sums")

            def element(*i: Any) -> Scalar:
                return powers(*i) / reduction.at(sums, axes, i)

        return te.compute(shape, lambda *i: scalar.cast(element(*i), dtype), name="softmax")

    return lower.te(compute, lower.expr(data))


@lowers("Hardmax")
def _hardmax(lower: Lowering, node: Node) -> relax.Expr:
    data, axes = _data(node), _softmax_axes(lower, node)
    shape, dtype = lower.shape(data), lower.checked_dtype(data.dtype)

    def compute(x: te.Tensor) -> te.Tensor:
        read = reduction.working(x)
        peak = reduction.reduced(read, shape, axes, reduction.greatest, "peak")

        def position(*i: Any) -> Scalar:
            found = tirx.any(tirx.EQ(read(*i), reduction.at(peak, axes, i)), tirx.isnan(read(*i)))
            return tirx.Select(found, i[axes[0]].astype("int64"), const(2**62, "int64"))

        first = reduction.reduced(position, shape, axes, reduction.least, "first")

        def element(*i: Any) -> Scalar:
            chosen = tirx.EQ(reduction.at(first, axes, i), i[axes[0]].astype("int64"))
            return scalar.cast(chosen, dtype)

        return te.compute(shape, element, name="hardmax")

    return lower.te(compute, lower.expr(data))
