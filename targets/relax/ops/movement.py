"""Ops that move elements to places that do not depend on data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax, te, tirx
from tvm.script.ir_builder import tirx as T

from graphopt.ir import dims
from graphopt.ir.graph import Node, Value
from graphopt.ir.slices import sliced
from graphopt.targets.relax.broadcast import index_into
from graphopt.targets.relax.loops import loops, require, store
from graphopt.targets.relax.lowering import Check, Lowering, compute, int64, lowers
from graphopt.targets.relax.operands import (
    bind_shape,
    describe,
    elements,
    is_static,
    product,
    static_ints,
    tensor_input,
)

# ---------------------------------------------------------------- the same order


@lowers("Identity")
def _identity(lower: Lowering, node: Node) -> relax.Expr:
    return lower.expr(tensor_input(node, 0))


@lowers("Dropout")
def _dropout(lower: Lowering, node: Node) -> list[relax.Expr]:
    data, training = tensor_input(node, 0), node.input(2)
    if training is not None and static_ints(training) != [0]:
        raise lower.unsupported("it drops values at random (training_mode); export for inference")
    results = [lower.expr(data)]
    if len(node.outputs) > 1:
        shape = lower.shape(data)
        kept = tirx.const(True, "bool")
        results.append(lower.te(lambda: compute(shape, lambda *_: kept, "mask")))
    return results


@lowers("Flatten", "Squeeze", "Unsqueeze")
def _flatten(lower: Lowering, node: Node) -> relax.Expr:
    return reshaped(lower, node, tensor_input(node, 0), node.output)


@lowers("Reshape")
def _reshape(lower: Lowering, node: Node) -> relax.Expr:
    data = tensor_input(node, 0)
    if not all(lower.knows(dim) for dim in node.output.tensor.dims):
        _bind_reshape(lower, node, data)
    return reshaped(lower, node, data, node.output)


def _bind_reshape(lower: Lowering, node: Node, data: Value) -> None:
    """Bind the sizes that a shape computed at run time asks for, 0 and -1 included."""
    source = [int64(size) for size in lower.shape(data)]
    wanted = [int64(size) for size in elements(lower, tensor_input(node, 1))]
    zero, one, infer = int64(0), int64(1), int64(-1)
    if not node.attr("allowzero"):
        for axis, size in enumerate(wanted):
            kept = source[axis] if axis < len(source) else zero
            wanted[axis] = tirx.Select(tirx.EQ(size, zero), kept, size)
    known = product([tirx.Select(tirx.EQ(size, infer), one, size) for size in wanted])
    rest = tirx.floordiv(product([one, *source]), tirx.max(known, one))
    shape = [tirx.Select(tirx.EQ(size, infer), rest, size) for size in wanted]
    count = sum((tirx.EQ(size, infer).astype("int64") for size in wanted), zero)
    text = f"{describe(node)}: not a shape"
    checks = [(tirx.all(count <= one, *(size >= infer for size in wanted)), text)]
    bind_shape(lower, node.output, shape, checks)


def reshaped(lower: Lowering, node: Node, data: Value, output: Value) -> relax.Expr:
    """The elements of `data` in order under the shape of `output`.

    Where it is not certain that both have the same number of elements, this is checked at run time.
    """
    source, shape = lower.expr(data), lower.shape(output)
    if dims.product(data.tensor.dims) == dims.product(output.tensor.dims):
        return lower.reshape(source, shape)
    before, after = int64(product(lower.shape(data))), int64(product(shape))
    text = f"{describe(node)}: cannot reshape {data.type} to {output.type}: the sizes differ"
    same = tirx.all(tirx.EQ(before, after), *(int64(size) >= int64(0) for size in shape))

    def emit(x: te.Tensor) -> te.Tensor:
        return compute([before], lambda i: x(i), "flat")

    flat = lower.te(emit, lower.reshape(source, [before]), checks=[(same, text)])
    return lower.reshape(flat, shape)


# -------------------------------------------------------------- another order


@lowers("Transpose")
def _transpose(lower: Lowering, node: Node) -> relax.Expr:
    data = tensor_input(node, 0)
    shape = lower.shape(data)
    order = node.attr("perm") or list(reversed(range(len(shape))))
    moved = [shape[axis] for axis in order]
    if _keeps_order(order, shape):
        return lower.reshape(lower.expr(data), moved)
    back = [order.index(axis) for axis in range(len(shape))]

    def emit(x: te.Tensor) -> te.Tensor:
        return compute(moved, lambda *i: x(*(i[k] for k in back)), "transpose")

    return lower.te(emit, lower.expr(data))


def _keeps_order(order: Sequence[int], shape: Sequence[Any]) -> bool:
    """True if a transpose moves only axes of size 1."""
    long = [axis for axis in order if not (is_static(shape[axis]) and shape[axis] == 1)]
    return long == sorted(long)


@lowers("DepthToSpace")
def _depth_to_space(lower: Lowering, node: Node) -> relax.Expr:
    batch, depth, height, width = lower.shape(tensor_input(node, 0))
    block = node.attr("blocksize")
    rest = _quotient(depth, block * block)
    shape = [batch, rest, height * block, width * block]
    if node.attr("mode") == "CRD":
        split, order = [batch, rest, block, block, height, width], [0, 1, 4, 2, 5, 3]
    else:
        split, order = [batch, block, block, rest, height, width], [0, 3, 4, 1, 5, 2]
    return _split_transposed(lower, node, split, order, shape)


@lowers("SpaceToDepth")
def _space_to_depth(lower: Lowering, node: Node) -> relax.Expr:
    batch, depth, height, width = lower.shape(tensor_input(node, 0))
    block = node.attr("blocksize")
    rows, columns = _quotient(height, block), _quotient(width, block)
    split = [batch, depth, rows, block, columns, block]
    order = [0, 1, 3, 5, 2, 4] if node.attr("mode", "DCR") == "CRD" else [0, 3, 5, 1, 2, 4]
    shape = [batch, depth * block * block, rows, columns]
    return _split_transposed(lower, node, split, order, shape)


def _quotient(size: Any, divisor: int) -> Any:
    return size // divisor if is_static(size) else tirx.floordiv(size, int64(divisor))


def _split_transposed(
    lower: Lowering, node: Node, split: list[Any], order: list[int], shape: list[Any]
) -> relax.Expr:
    """Input 0 with axes split as in `split`, put into `order` and joined to `shape`."""
    data = tensor_input(node, 0)
    before, after = int64(product(lower.shape(data))), int64(product(split))
    checks = [(tirx.EQ(before, after), f"{describe(node)}: its blocks do not divide {data.type}")]
    whole = bind_shape(lower, node.output, shape, [] if is_static(*split) else checks)
    back = [order.index(axis) for axis in range(len(order))]
    moved = [split[axis] for axis in order]

    def emit(x: te.Tensor) -> te.Tensor:
        return compute(moved, lambda *i: x(*(i[k] for k in back)), "transpose")

    return lower.reshape(lower.te(emit, lower.reshape(lower.expr(data), split)), whole)


# ------------------------------------------------------------------ joins, parts


@lowers("Concat")
def _concat(lower: Lowering, node: Node) -> relax.Expr:
    output = node.output
    axis = node.attr("axis") % len(output.tensor.dims)
    parts = [tensor_input(node, k) for k in range(len(node.inputs))]
    parts = [part for part in parts if part.tensor.dims[axis] != 0]
    if len(parts) == 1:
        return lower.expr(parts[0])
    shape, checks = lower.shape(output), disagreements(lower, node, parts, axis)
    rows, width = product(shape[:axis]), product(shape[axis:])
    own = [lower.shape(part) for part in parts]
    widths = [product(sizes[axis:]) for sizes in own]
    flat = [
        lower.reshape(lower.expr(part), [product(sizes[:axis]), columns])
        for part, sizes, columns in zip(parts, own, widths)
    ]

    def body(*buffers: Any) -> None:
        *sources, target = buffers
        for holds, text in checks:
            require(holds, text)
        with T.serial(int64(rows)) as i:
            at: Any = int64(0)
            for source, columns in zip(sources, widths):
                with T.serial(int64(columns)) as j:
                    store(target, [i, at + j], source[i, j])
                at = at + int64(columns)

    dtype = lower.checked_dtype(output.dtype)
    (joined,) = loops(lower, body, flat, [([rows, width], dtype)])
    return lower.reshape(joined, shape)


def disagreements(lower: Lowering, node: Node, parts: list[Value], axis: int) -> list[Check]:
    """What must hold of the sizes of parts beside the axis they are joined on."""
    target, checks = node.output.tensor.dims, []
    for part in parts:
        for k, (size, wanted) in enumerate(zip(part.tensor.dims, target)):
            if k != axis and size != wanted:
                agree = tirx.EQ(int64(lower.dim(size)), int64(lower.dim(wanted)))
                text = f"{describe(node)}: sizes {size} and {wanted} of axis {k} differ"
                checks.append((agree, text))
    return checks


@lowers("Split")
def _split(lower: Lowering, node: Node) -> list[relax.Expr]:
    data = tensor_input(node, 0)
    source, shape = lower.expr(data), lower.shape(data)
    axis = node.attr("axis") % len(shape)
    sizes, checks = _split_sizes(lower, node, shape[axis], axis)
    results, start = [], int64(0)
    for output, size in zip(node.outputs, sizes):
        found = [*shape[:axis], size, *shape[axis + 1 :]]
        whole = bind_shape(lower, output, found, checks)
        results.append(_part(lower, source, whole, {axis: (start, int64(1))}))
        start, checks = start + int64(size), []
    return results


def _split_sizes(
    lower: Lowering, node: Node, size: Any, axis: int
) -> tuple[list[Any], list[Check]]:
    """The size of each part along the axis, and what must hold of them at run time."""
    given = node.input(1)
    if given is None:
        return [lower.dim(output.tensor.dims[axis]) for output in node.outputs], []
    sizes = elements(lower, given)
    if is_static(size, *sizes) and sum(sizes) == size and min(sizes, default=0) >= 0:
        return sizes, []
    parts = [int64(part) for part in sizes]
    holds = [part >= int64(0) for part in parts] + [part <= int64(size) for part in parts]
    total = tirx.EQ(sum(parts, int64(0)), int64(size))
    text = f"{describe(node)}: its parts do not make up the axis"
    return sizes, [(tirx.all(total, *holds), text)]


Steps = dict[int, tuple[Any, Any]]


def _part(lower: Lowering, source: relax.Expr, shape: list[Any], steps: Steps) -> relax.Expr:
    """What a walk from `start` by `step` along some axes takes; steps map an axis to both."""

    def emit(x: te.Tensor) -> te.Tensor:
        def element(*index: Any) -> Any:
            place = list(index)
            for axis, (start, step) in steps.items():
                place[axis] = start + index[axis] * step
            return x(*place)

        return compute(shape, element, "part")

    return lower.te(emit, source)


# ------------------------------------------------------------------------- slices


@lowers("Slice")
def _slice(lower: Lowering, node: Node) -> relax.Expr:
    data = tensor_input(node, 0)
    shape = lower.shape(data)
    starts, ends = (_within_reach(elements(lower, tensor_input(node, k))) for k in (1, 2))
    given_axes, given_steps = node.input(3), node.input(4)
    axes = list(range(len(starts))) if given_axes is None else elements(lower, given_axes)
    strides = [1] * len(starts)
    if given_steps is not None:
        strides = _within_reach(elements(lower, given_steps))
    found, steps, checks = list(shape), {}, []
    for axis, size in enumerate(shape):
        bounds = _bounds_of(axis, len(shape), size, axes, (starts, ends, strides))
        if bounds is None:
            continue
        start, found[axis] = _clamped_slice(size, *bounds)
        steps[axis] = (int64(start), int64(bounds[2]))
        checks.append((tirx.NE(int64(bounds[2]), int64(0)), f"{describe(node)}: a step is zero"))
    if is_static(*strides):
        if 0 in strides:
            raise lower.unsupported("a step is zero")
        checks = []
    whole = bind_shape(lower, node.output, found, checks)
    return _part(lower, lower.expr(data), whole, steps)


_FAR = 1 << 40  # past the end of any axis


def _within_reach(bounds: list[Any]) -> list[Any]:
    """Constant bounds moved to where the compiler can add and multiply them without overflow."""
    return [max(-_FAR, min(b, _FAR)) if is_static(b) else b for b in bounds]


def _bounds_of(
    axis: int, rank: int, size: Any, axes: list[Any], given: tuple[list[Any], ...]
) -> tuple[Any, ...] | None:
    """Start, end and step of an axis; None if it is not sliced."""
    if is_static(*axes):
        places = [k for k, a in enumerate(axes) if a % rank == axis]
        return tuple(part[places[-1]] for part in given) if places else None
    bounds = [int64(0), int64(size), int64(1)]
    for k, a in enumerate(axes):
        here = tirx.any(tirx.EQ(a, int64(axis)), tirx.EQ(a, int64(axis - rank)))
        bounds = [tirx.Select(here, int64(part[k]), bound) for part, bound in zip(given, bounds)]
    return tuple(bounds)


def _clamped_slice(size: Any, start: Any, end: Any, step: Any) -> tuple[Any, Any]:
    """The first position and the number of elements that `[start:end:step]` takes.

    No intermediate result leaves int64, however far out the bounds are.
    """
    if is_static(size, start, end, step) and step != 0:
        taken = sliced(size, start, end, step)
        return (taken.start if len(taken) else 0), len(taken)
    size, start, end, step = (int64(x) for x in (size, start, end, step))
    zero, one, minus = int64(0), int64(1), int64(-1)
    first = tirx.Select(start < zero, start + size, start)
    last = tirx.Select(end < zero, end + size, end)
    low = tirx.min(tirx.max(first, zero), size), tirx.min(tirx.max(last, zero), size)
    high = (
        tirx.min(tirx.max(first, zero), size - one),
        tirx.min(tirx.max(last, minus), size - one),
    )
    forwards = tirx.floordiv(low[1] - low[0] - one, tirx.max(step, one)) + one
    # The least integer has no positive counterpart.
    back = tirx.max(zero - tirx.max(step, int64(-(2**63) + 1)), one)
    backwards = tirx.floordiv(high[0] - high[1] - one, back) + one
    ahead = step > zero
    count = tirx.max(tirx.Select(ahead, forwards, backwards), zero)
    return tirx.Select(ahead, low[0], high[0]), count


# ------------------------------------------------------------------- repetitions


@lowers("Expand")
def _expand(lower: Lowering, node: Node) -> relax.Expr:
    data, output = tensor_input(node, 0), node.output
    wanted, given = output.tensor.dims, data.tensor.dims
    if not all(lower.knows(dim) for dim in wanted):
        _bind_expand(lower, node, data)
    to_source, checks = index_into(lower, given, wanted)
    shape = lower.shape(output)

    def emit(x: te.Tensor) -> te.Tensor:
        return compute(shape, lambda *i: x(*to_source(i)), "expand")

    return lower.te(emit, lower.expr(data), checks=checks)


def _bind_expand(lower: Lowering, node: Node, data: Value) -> None:
    wanted = [int64(size) for size in elements(lower, tensor_input(node, 1))]
    source = [int64(size) for size in lower.shape(data)]
    rank = max(len(wanted), len(source))
    one = int64(1)
    source = [one] * (rank - len(source)) + source
    wanted = [one] * (rank - len(wanted)) + wanted
    shape = [tirx.Select(tirx.EQ(w, one), s, w) for s, w in zip(source, wanted)]
    holds = [w >= int64(0) for w in wanted]
    bind_shape(lower, node.output, shape, [(tirx.all(*holds), f"{describe(node)}: not a shape")])


@lowers("Tile")
def _tile(lower: Lowering, node: Node) -> relax.Expr:
    data = tensor_input(node, 0)
    shape, repeats = lower.shape(data), elements(lower, tensor_input(node, 1))
    found = [size * times for size, times in zip(shape, repeats)]
    checks: list[Check] = []
    if not is_static(*repeats):
        holds = [int64(times) >= int64(0) for times in repeats]
        checks = [(tirx.all(*holds), f"{describe(node)}: a repeat is negative")]
    whole = bind_shape(lower, node.output, found, checks)

    # Each axis as (copy, position), so that no index needs a division.
    pairs = [size for pair in zip(repeats, shape) for size in pair]

    def emit(x: te.Tensor) -> te.Tensor:
        return compute(pairs, lambda *i: x(*i[1::2]), "tile")

    return lower.reshape(lower.te(emit, lower.expr(data)), whole)
