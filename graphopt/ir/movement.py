"""Types of ops that move, repeat, pick or reduce elements: they must keep symbolic sizes."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.ir import dims
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Node
from graphopt.ir.infer import (
    content_input,
    failure,
    require_sizes,
    tensor_input,
    tensor_type,
    type_rule,
)
from graphopt.ir.slices import slice_length
from graphopt.ir.types import TensorType, Type, dtype_of


@type_rule("Reshape")
def _reshape(node: Node) -> list[Type | None]:
    data, wanted = tensor_input(node, 0), content_input(node, 1)
    if wanted is None:
        length = tensor_input(node, 1).shape
        rank = length[0] if length else None
        return [tensor_type(data.dtype, [None] * rank if isinstance(rank, int) else None)]
    keep_zero = node.attr("allowzero", 0)
    shape: list[Dim | None] = []
    for axis, size in enumerate(wanted):
        if isinstance(size, int) and size == 0 and not keep_zero:
            shape.append(data.dims[axis] if data.shape and axis < len(data.shape) else None)
        else:
            shape.append(size)
    if -1 in shape:
        at = shape.index(-1)
        rest = [size for axis, size in enumerate(shape) if axis != at]
        shape[at] = _remaining(data, rest, node)
    elif (
        data.is_static
        and all(isinstance(s, int) for s in shape)
        and dims.product(shape) != data.elements  # type: ignore[arg-type]
    ):
        raise failure(node, f"cannot reshape {data} to {shape}")
    return [tensor_type(data.dtype, shape)]


def _remaining(data: TensorType, rest: list[Dim | None], node: Node) -> Dim | None:
    """The size that -1 stands for."""
    if data.elements is None or any(size is None for size in rest):
        return None
    known = dims.product(size for size in rest if size is not None)
    size = dims.exact_div(data.elements, known)
    if size is None and isinstance(data.elements, int) and isinstance(known, int) and known:
        raise failure(node, f"cannot reshape {data}: {known} does not divide its size")
    return size


@type_rule("Concat")
def _concat(node: Node) -> list[Type | None]:
    types = [tensor_input(node, index) for index in range(len(node.inputs))]
    if len({t.dtype for t in types}) > 1:
        raise failure(node, "inputs have different dtypes")
    ranks = {t.rank for t in types if t.rank is not None}
    if len(ranks) > 1:
        raise failure(node, f"inputs have different ranks ({sorted(ranks)})")
    if any(t.shape is None for t in types):
        return [TensorType(types[0].dtype)]
    (rank,) = ranks
    axis = _axis(node, node.attr("axis"), rank)
    shape: list[Dim | None] = []
    for k in range(rank):
        sizes = [t.dims[k] for t in types]
        if k == axis:
            shape.append(sum(sizes[1:], sizes[0]))
            continue
        numbers = sorted({size for size in sizes if isinstance(size, int)})
        if len(numbers) > 1:
            raise failure(node, f"inputs disagree on axis {k} ({numbers})")
        shape.append(numbers[0] if numbers else sizes[0])
    return [tensor_type(types[0].dtype, shape)]


@type_rule("Slice")
def _slice(node: Node) -> list[Type | None]:
    data = tensor_input(node, 0)
    if data.shape is None:
        return [data]
    starts, ends, axes, steps = (content_input(node, k) for k in range(1, 5))
    if node.input(3) is None and starts is not None:
        axes = list(range(len(starts)))
    if axes is None:
        return [tensor_type(data.dtype, [None] * len(data.shape))]
    if node.input(4) is None:
        steps = [1] * len(axes)
    shape: list[Dim | None] = list(data.shape)
    for k, axis in enumerate(axes):
        at = _axis(node, int(axis), len(shape))  # type: ignore[arg-type]
        bounds = (starts and starts[k], ends and ends[k], steps and steps[k])
        shape[at] = slice_length(data.shape[at], *bounds)  # type: ignore[arg-type]
    return [tensor_type(data.dtype, shape)]


@type_rule("Tile")
def _tile(node: Node) -> list[Type | None]:
    data, repeats = tensor_input(node, 0), content_input(node, 1)
    if data.shape is None or repeats is None or len(repeats) != len(data.shape):
        return [tensor_type(data.dtype, None if data.shape is None else [None] * len(data.shape))]
    return [tensor_type(data.dtype, [a * b for a, b in zip(data.shape, repeats)])]


@type_rule("Range")
def _range(node: Node) -> list[Type | None]:
    contents = [content_input(node, k) for k in range(3)]
    length: Dim | None = None
    if all(contents):
        start, limit, delta = (content[0] for content in contents if content)
        if isinstance(delta, int) and delta > 0:
            length = dims.maximum(dims.ceildiv(limit - start, delta), 0)
        elif isinstance(delta, int) and delta < 0:
            length = dims.maximum(dims.ceildiv(start - limit, -delta), 0)
    elif all(node.const(k) is not None for k in range(3)):
        start, limit, delta = (node.const(k).item() for k in range(3))  # type: ignore[union-attr]
        length = max(0, -int(-(limit - start) // delta)) if delta else None
    return [tensor_type(tensor_input(node, 0).dtype, [length])]


@type_rule("ConstantOfShape")
def _constant_of_shape(node: Node) -> list[Type | None]:
    fill = node.attrs.get("value")
    dtype = "float32" if fill is None else dtype_of(fill)
    shape = content_input(node, 0)
    if shape is None:
        length = tensor_input(node, 0).shape
        rank = length[0] if length else None
        return [tensor_type(dtype, [None] * rank if isinstance(rank, int) else None)]
    require_sizes(node, shape)
    return [tensor_type(dtype, shape)]


@type_rule("Flatten")
def _flatten(node: Node) -> list[Type | None]:
    data = tensor_input(node, 0)
    if data.shape is None:
        return [tensor_type(data.dtype, [None, None])]
    axis = node.attr("axis")
    axis = axis + len(data.shape) if axis < 0 else axis
    parts = data.shape[:axis], data.shape[axis:]
    return [tensor_type(data.dtype, [dims.product(part) for part in parts])]


_REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")


@type_rule(*(f"Reduce{kind}" for kind in _REDUCTIONS))
def _reduce(node: Node) -> list[Type | None]:
    data, axes = tensor_input(node, 0), content_input(node, 1)
    if data.shape is None:
        return [data]
    rank, keepdims = len(data.shape), node.attr("keepdims")
    if node.input(1) is not None and axes is None:
        length = tensor_input(node, 1).shape
        count = length[0] if length else None
        if count != 0:
            kept = rank if keepdims else rank - count if isinstance(count, int) else None
            return [tensor_type(data.dtype, None if kept is None else [None] * kept)]
    if not axes:
        axes = [] if node.attr("noop_with_empty_axes") else list(range(rank))
    gone = {_axis(node, int(axis), rank) for axis in axes}  # type: ignore[arg-type]
    if keepdims:
        return [tensor_type(data.dtype, [1 if k in gone else d for k, d in enumerate(data.shape)])]
    return [tensor_type(data.dtype, [d for k, d in enumerate(data.shape) if k not in gone])]


@type_rule("Split")
def _split(node: Node) -> list[Type | None]:
    data, count = tensor_input(node, 0), len(node.outputs)
    if data.shape is None:
        return [TensorType(data.dtype)] * count
    axis = _axis(node, node.attr("axis"), len(data.shape))
    sizes: Sequence[Dim | None] | None = content_input(node, 1)
    if node.input(1) is None:
        chunk = dims.ceildiv(data.shape[axis], count)
        sizes = [*[chunk] * (count - 1), data.shape[axis] - chunk * (count - 1)]
    if sizes is None or len(sizes) != count:
        sizes = [None] * count
    shapes = [[*data.shape[:axis], size, *data.shape[axis + 1 :]] for size in sizes]
    return [tensor_type(data.dtype, shape) for shape in shapes]


@type_rule("Pad")
def _pad(node: Node) -> list[Type | None]:
    data, pads, axes = tensor_input(node, 0), content_input(node, 1), content_input(node, 3)
    if data.shape is None:
        return [data]
    unknown = tensor_type(data.dtype, [None] * len(data.shape))
    if pads is None or (node.input(3) is not None and axes is None):
        return [unknown]
    where = [int(a) % len(data.shape) for a in axes or range(len(data.shape))]  # type: ignore
    if len(pads) != 2 * len(where):
        raise failure(node, f"{len(pads)} pads for {len(where)} axes")
    shape: list[Dim | None] = list(data.shape)
    for k, axis in enumerate(where):
        shape[axis] = data.shape[axis] + pads[k] + pads[k + len(where)]
    return [tensor_type(data.dtype, shape)]


@type_rule("TopK")
def _topk(node: Node) -> list[Type | None]:
    data, count = tensor_input(node, 0), content_input(node, 1)
    if data.shape is None:
        return [data, TensorType("int64")]
    axis = _axis(node, node.attr("axis"), len(data.shape))
    shape = [*data.shape[:axis], count[0] if count else None, *data.shape[axis + 1 :]]
    return [tensor_type(data.dtype, shape), tensor_type("int64", shape)]


@type_rule("Unique")
def _unique(node: Node) -> list[Type | None]:
    """What lists distinct elements has one size, the inverse that of all places."""
    data, axis = tensor_input(node, 0), node.attrs.get("axis")
    types: list[Type | None] = [data, *[tensor_type("int64", [None])] * 3]
    if axis is None or data.shape is not None:
        at = 0 if axis is None else _axis(node, axis, len(data.dims))
        shape = [data.elements] if axis is None else list(data.dims)
        places, shape[at] = shape[at], _once_named(node, len(shape), at)
        counts = tensor_type("int64", [shape[at]])
        types = [tensor_type(data.dtype, shape), counts, tensor_type("int64", [places]), counts]
    return types[: len(node.outputs)]


def _once_named(node: Node, rank: int, axis: int) -> Dim:
    """The name that the size of the first output along an axis has got, or a new one."""
    assert node.graph is not None
    found = node.outputs[0].type
    named = isinstance(found, TensorType) and found.rank == rank
    return found.dims[axis] if named else node.graph.fresh_dim()  # type: ignore[union-attr]


def _axis(node: Node, axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise failure(node, f"axis {axis} is out of range for rank {rank}")
    return axis % rank
