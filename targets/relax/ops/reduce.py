"""Reductions, ArgMax and ArgMin, CumSum, and the softmax family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tvm import relax, te, tirx
from tvm.script import tirx as T

from graphopt.ir.content import known_ints
from graphopt.ir.dims import product as dim_product
from graphopt.ir.graph import Node, Value
from graphopt.targets.kernels import script
from graphopt.targets.relax import reduction, scalar
from graphopt.targets.relax.lowering import Lowering, compute, int64, lowers
from graphopt.targets.relax.reduction import Region
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


def _region(lower: Lowering, node: Node, data: Value) -> Region:
    """The region that a Reduce op works on; axes known at run time make its sizes so too."""
    shape, given = lower.shape(data), node.input(1)
    axes = [] if given is None or given.shape == (0,) else known_ints(given.content)
    if axes is None:
        return _runtime_region(lower, node, shape)
    if not axes and not node.attr("noop_with_empty_axes"):
        axes = list(range(len(shape)))
    return replace(Region.over(shape, axes), in_parts=lower.in_parts)


def _runtime_region(lower: Lowering, node: Node, shape: list[Any]) -> Region:
    """Binds the sizes of the node's output to what its axes say."""
    axes = node.inputs[1]
    assert axes is not None
    (given,), rank = lower.shape(axes), len(shape)
    if not isinstance(given, int):
        raise lower.unsupported("how many axes it has is known only at run time")

    def sizes(chosen: te.Tensor) -> te.Tensor:
        gone = [_contains(chosen, given, rank, axis) for axis in range(rank)]
        one, full = int64(1), [int64(size) for size in shape]
        kept = [tirx.Select(gone[k], one, full[k]) for k in range(rank)]
        looped = [tirx.Select(gone[k], full[k], one) for k in range(rank)]
        elements = kept + looped + ([] if node.attr("keepdims") else _pruned(gone, full, given))
        return compute((len(elements),), lambda i: _chosen(elements, i), name="sizes")

    names = [lower.fresh_size(f"{part}{k}") for part in ("kept", "looped") for k in range(rank)]
    outer = [str(dim) for dim in node.output.tensor.dims]
    if node.attr("keepdims"):
        bound = lower.bind_sizes([*outer, *names[rank:]], lower.te(sizes, lower.expr(axes)))
    else:
        bound = lower.bind_sizes([*names, *outer], lower.te(sizes, lower.expr(axes)))
    return Region(tuple(range(rank)), tuple(bound[:rank]), tuple(bound[rank : 2 * rank]))


def _contains(axes: te.Tensor, count: int, rank: int, axis: int) -> Scalar:
    """Whether run-time `axes` include `axis`."""
    tests = [tirx.EQ(axes(k), const(a, "int64")) for k in range(count) for a in (axis, axis - rank)]
    return tirx.any(*tests)


def _pruned(gone: list[Scalar], full: list[Scalar], count: int) -> list[Scalar]:
    """The sizes that are left when `count` of the axes are gone."""
    left, before = [], const(0, "int64")
    places = []
    for flag in gone:
        places.append(before)
        before = before + tirx.Select(flag, const(0, "int64"), const(1, "int64"))
    for k in range(len(full) - count):
        size: Any = const(0, "int64")
        for flag, place, extent in zip(gone, places, full):
            here = tirx.all(tirx.Not(flag), tirx.EQ(place, const(k, "int64")))
            size = tirx.Select(here, extent, size)
        left.append(size)
    return left


def _chosen(elements: list[Scalar], index: Any) -> Scalar:
    """Element `index` of a short list."""
    result = elements[-1]
    for k in reversed(range(len(elements) - 1)):
        result = tirx.Select(tirx.EQ(index, int64(k)), elements[k], result)
    return result


@lowers(*_PLAIN, *_REDUCER)
def _reduce(lower: Lowering, node: Node) -> relax.Expr:
    data, op = _data(node), node.op_type
    region, dtype = _region(lower, node, data), node.output.dtype
    work = _working(op, lower.checked_dtype(dtype))
    before, after = _BEFORE.get(op, lambda x: x), _AFTER.get(op)
    reducer = _REDUCER.get(op, reduction.total)
    if reducer is reduction.total:  # for which targets have schedules
        region = replace(region, in_parts=False)

    def reduce(x: te.Tensor) -> te.Tensor:
        return region.reduce(lambda *i: before(scalar.cast(x(*i), work)), reducer, "reduce")

    result = lower.te(reduce, lower.expr(data))
    if after is not None or work != dtype:
        result = _each(lower, result, dtype, lambda x: after(x, region.count) if after else x)
    return result if node.attr("keepdims") else lower.reshape(result, lower.shape(node.output))


def _data(node: Node) -> Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _each(
    lower: Lowering, x: relax.Expr, dtype: str, function: Callable[[Scalar], Scalar]
) -> relax.Expr:
    """Emit `function` of every element of `x`, as `dtype`."""

    def emit(t: te.Tensor) -> te.Tensor:
        return compute(t.shape, lambda *i: scalar.cast(function(t(*i)), dtype), name="finish")

    return lower.te(emit, x)


@lowers("ReduceLogSumExp")
def _reduce_log_sum_exp(lower: Lowering, node: Node) -> relax.Expr:
    data, dtype = _data(node), node.output.dtype
    region = _region(lower, node, data)
    work = _working(node.op_type, lower.checked_dtype(dtype))

    def emit(x: te.Tensor) -> te.Tensor:
        def read(*i: Any) -> Scalar:
            return scalar.cast(x(*i), work)

        peak = region.reduce(read, reduction.greatest, "peak")

        # Without a finite peak (all -inf, an inf, a NaN, nothing at all) nothing is subtracted.
        def offset(top: Scalar) -> Scalar:
            finite = tirx.abs(top) <= const(_LARGEST[work], work)
            return tirx.Select(finite, top, const(0, work))

        def power(*i: Any) -> Scalar:
            return scalar.exp(read(*i) - offset(region.at(peak, i)))

        sums = region.reduce(power, reduction.total, "sums")
        return compute(
            region.kept,
            lambda *i: scalar.cast(tirx.log(sums(*i)) + offset(peak(*i)), dtype),
            name="log_sum_exp",
        )

    result = lower.te(emit, lower.expr(data))
    return result if node.attr("keepdims") else lower.reshape(result, lower.shape(node.output))


_LARGEST = {"float32": 3.4028234663852886e38, "float64": 1.7976931348623157e308}


@lowers("ArgMax", "ArgMin")
def _arg(lower: Lowering, node: Node) -> relax.Expr:
    data = _data(node)
    dtype = scalar.working_dtype(lower.checked_dtype(data.dtype))
    region = replace(Region.over(lower.shape(data), [node.attr("axis")]), in_parts=lower.in_parts)
    extreme = reduction.greatest if node.op_type == "ArgMax" else reduction.least
    last, keepdims = bool(node.attr("select_last_index")), bool(node.attr("keepdims"))

    def emit(x: te.Tensor) -> te.Tensor:
        read = reduction.working(x)
        best = region.reduce(read, extreme, "best")

        def position(*i: Any) -> Scalar:
            value = read(*i)
            found = tirx.EQ(value, region.at(best, i))
            if scalar.is_float(dtype):  # the extreme of values with a NaN is the NaN
                found = tirx.any(found, tirx.isnan(value))
            miss = const(-1 if last else scalar.highest("int64"), "int64")
            return tirx.Select(found, i[region.axes[0]], miss)

        pick = reduction.greatest if last else reduction.least
        return region.reduce(position, pick, "position", keepdims=keepdims)

    return lower.te(emit, lower.expr(data))


# ------------------------------------------------------------------ running sums


@lowers("CumSum")
def _cumsum(lower: Lowering, node: Node) -> relax.Expr:
    data, dtype = _data(node), lower.checked_dtype(node.output.dtype)
    shape = around_axis(lower, node, data)
    kernel = _running_sum(dtype, bool(node.attr("exclusive")), bool(node.attr("reverse")))
    (result,) = lower.kernel(kernel, [lower.reshape(lower.expr(data), shape)], [(shape, dtype)])
    return lower.reshape(result, lower.shape(node.output))


def around_axis(lower: Lowering, node: Node, data: Value) -> list[Any]:
    """The sizes before, of and after the axis that input 1 gives, possibly at run time."""
    sizes, given = data.tensor.dims, node.inputs[1]
    assert given is not None
    axes = known_ints(given.content)
    if axes is not None:
        axis = axes[0] % len(sizes)
        flat = [dim_product(sizes[:axis]), sizes[axis], dim_product(sizes[axis + 1 :])]
        return [lower.dim(dim) for dim in flat]
    rank, full = len(sizes), [int64(size) for size in lower.shape(data)]

    def around(chosen: te.Tensor) -> te.Tensor:
        axis = chosen(0).astype("int64")
        at = tirx.Select(axis < int64(0), axis + int64(rank), axis)
        parts: list[Any] = [int64(1), int64(1), int64(1)]
        for k, size in enumerate(full):
            for part, here in enumerate((int64(k) < at, tirx.EQ(int64(k), at), int64(k) > at)):
                parts[part] = parts[part] * tirx.Select(here, size, int64(1))
        return compute((3,), lambda i: _chosen(parts, i), name="sizes")

    names = [lower.fresh_size(part) for part in ("outer", "length", "inner")]
    return lower.bind_sizes(names, lower.te(around, lower.reshape(lower.expr(given), [1])))


def _running_sum(dtype: str, exclusive: bool, reverse: bool) -> tirx.PrimFunc:
    """Kernel (x[outer, n, inner]) -> out of the same shape: sums along the middle axis."""
    work = scalar.working_dtype(dtype)

    @script.prim_func(private=True, s_tir=True)
    def cumsum(x: T.handle, out: T.handle):  # type: ignore[no-untyped-def]
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


def _along_axis(lower: Lowering, node: Node) -> Region:
    region = Region.over(lower.shape(_data(node)), [node.attr("axis", -1)])
    return replace(region, in_parts=lower.in_parts)


@lowers("Softmax", "LogSoftmax")
def _softmax(lower: Lowering, node: Node) -> relax.Expr:
    data, region = _data(node), _along_axis(lower, node)
    shape, dtype = lower.shape(data), lower.checked_dtype(data.dtype)
    work = scalar.working_dtype(dtype)

    def step(value: Scalar) -> Scalar:
        # ONNX defines both by functions whose steps have the dtype of x, and Attention's
        # softmax_precision relies on it: float16 is rounded after each.
        return scalar.cast(scalar.cast(value, dtype), work)

    def emit(x: te.Tensor) -> te.Tensor:
        read = reduction.working(x)
        peak = region.reduce(read, reduction.greatest, "peak")

        def shifted(*i: Any) -> Scalar:
            return step(read(*i) - region.at(peak, i))

        powers = compute(shape, lambda *i: step(scalar.exp(shifted(*i))), name="powers")
        sums = region.reduce(powers, reduction.total, "sums")

        def element(*i: Any) -> Scalar:
            total = step(region.at(sums, i))
            if node.op_type == "LogSoftmax":
                return shifted(*i) - step(tirx.log(total))
            return powers(*i) / total

        return compute(shape, lambda *i: scalar.cast(element(*i), dtype), name="softmax")

    return lower.te(emit, lower.expr(data))


@lowers("Hardmax")
def _hardmax(lower: Lowering, node: Node) -> relax.Expr:
    data, region = _data(node), _along_axis(lower, node)
    shape, dtype = lower.shape(data), lower.checked_dtype(data.dtype)
    (axis,) = region.axes

    def emit(x: te.Tensor) -> te.Tensor:
        read = reduction.working(x)
        peak = region.reduce(read, reduction.greatest, "peak")

        def position(*i: Any) -> Scalar:
            found = tirx.any(tirx.EQ(read(*i), region.at(peak, i)), tirx.isnan(read(*i)))
            return tirx.Select(found, i[axis], const(scalar.highest("int64"), "int64"))

        first = region.reduce(position, reduction.least, "first")

        def element(*i: Any) -> Scalar:
            return scalar.cast(tirx.EQ(region.at(first, i), i[axis]), dtype)

        return compute(shape, element, name="hardmax")

    return lower.te(emit, lower.expr(data))
