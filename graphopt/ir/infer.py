"""Types of a node's outputs from its inputs.

Ops that move sizes about have rules of their own here, because they must keep symbolic sizes; all
others ask the ONNX schema. A rule gives `None` for a size that it cannot express: the value then
keeps the size it had, or gets a fresh one that equals no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
from onnx import shape_inference

from graphopt.errors import InvalidModelError, UnsupportedOpError
from graphopt.ir import dims, schema
from graphopt.ir.content import infer_content, known_ints
from graphopt.ir.dims import Dim, Sym
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import (
    DimReader,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
    type_from_proto,
    type_to_proto,
)

Shape = Sequence[Dim | None] | None
TypeRule = Callable[[Node], list[Type | None]]

_TYPE_RULES: dict[tuple[str, str], TypeRule] = {}


def type_rule(*ops: str, domain: str = "") -> Callable[[TypeRule], TypeRule]:
    """Register the type rule of ops; a rule returns one type per output, None for unknown."""

    def register(rule: TypeRule) -> TypeRule:
        for op in ops:
            assert (domain, op) not in _TYPE_RULES, f"two type rules for {domain}::{op}"
            _TYPE_RULES[(domain, op)] = rule
        return rule

    return register


def has_type_rule(op_type: str, domain: str) -> bool:
    """True if types of this op can be inferred without an ONNX schema."""
    return (domain, op_type) in _TYPE_RULES


def infer_node(node: Node) -> bool:
    """Set the types and contents of a node's outputs; True if any of them changed.

    Raises:
        InvalidModelError: the inputs do not fit the op.
        UnsupportedOpError: the op is unknown.
    """
    rule = _TYPE_RULES.get((node.domain, node.op_type))
    types = rule(node) if rule else None
    if types is None:
        types = _schema_types(node)
    changed = False
    for value, inferred in zip(node.outputs, types):
        refined = _refine(value.type, inferred, node)
        changed |= refined != value.type
        value.type = refined
    if node.outputs:
        value = node.outputs[0]
        before = None if value.content is None else value.content.tolist()
        value.content = infer_content(node)
        changed |= before != (None if value.content is None else value.content.tolist())
    return changed


def tensor_type(dtype: str, shape: Shape) -> TensorType:
    """A type whose unknown sizes (None) are still to be named by `infer_node`."""
    return TensorType(dtype, None if shape is None else tuple(shape))  # type: ignore[arg-type]


def _refine(old: Type, new: Type | None, node: Node) -> Type:
    assert node.graph is not None
    if new is None:
        return old
    if isinstance(new, SequenceType):
        element = old.element if isinstance(old, SequenceType) else TensorType("")
        return SequenceType(_refine(element, new.element, node))  # type: ignore[arg-type]
    if isinstance(new, OptionalType):
        element = old.element if isinstance(old, OptionalType) else TensorType("")  # type: ignore
        return OptionalType(_refine(element, new.element, node))  # type: ignore[arg-type]
    if new.shape is None:
        known = old.shape if isinstance(old, TensorType) else None
        return TensorType(new.dtype, known)
    same_rank = isinstance(old, TensorType) and old.rank == new.rank
    shape = [
        dim if dim is not None else (old.dims[i] if same_rank else node.graph.fresh_dim())  # type: ignore
        for i, dim in enumerate(new.shape)
    ]
    return TensorType(new.dtype, tuple(shape))


# ------------------------------------------------------------------- ONNX schema


def _schema_types(node: Node) -> list[Type | None]:
    graph = node.graph
    assert graph is not None
    found = schema.find(node.op_type, node.domain, graph.opset(node.domain))
    if found is None:
        version = graph.opsets.get(node.domain, "?")
        raise UnsupportedOpError(
            node.op,
            f"not an op of domain {node.domain or 'ai.onnx'!r} version {version}",
            node.where,
        )
    known: dict[str, Dim] = {}
    input_types: dict[str, onnx.TypeProto] = {}
    input_data: dict[str, onnx.TensorProto] = {}
    names = [f"i{k}" if value is not None else "" for k, value in enumerate(node.inputs)]
    for name, value in zip(names, node.inputs):
        if value is None:
            continue
        input_types[name] = type_to_proto(value.type)
        _collect_sizes(value.type, known)
        if value.const is not None and value.const.size <= 1024:
            input_data[name] = onnx.numpy_helper.from_array(value.const, name)
    outputs = [f"o{k}" for k in range(len(node.outputs))]
    attrs = {k: a for k, a in node.attrs.items() if not isinstance(a, Graph)}
    proto = onnx.helper.make_node(node.op_type, names, outputs, domain=node.domain)
    proto.attribute.extend(make_attribute(name, attr) for name, attr in attrs.items())
    imports = [onnx.helper.make_opsetid(d, v) for d, v in graph.opsets.items()]
    try:
        result = shape_inference.infer_node_outputs(
            found, proto, input_types, input_data, opset_imports=imports, ir_version=10
        )
    except (shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        where = ", ".join(repr(name) for name in node.where[:3])
        raise InvalidModelError(f"{node.op} (node {where}): {reason}") from None
    read = DimReader(_unknown, known)  # type: ignore[arg-type]
    return [type_from_proto(result[o], read) if o in result else None for o in outputs]


def _unknown() -> None:
    return None


def _collect_sizes(type_: Type, known: dict[str, Dim]) -> None:
    if isinstance(type_, TensorType):
        known.update((str(dim), dim) for dim in type_.shape or () if isinstance(dim, Sym))
    else:
        _collect_sizes(type_.element, known)


def make_attribute(name: str, attr: Any) -> onnx.AttributeProto:
    """The ONNX form of an attribute; arrays become tensors."""
    import numpy as np

    if isinstance(attr, np.ndarray):
        attr = onnx.numpy_helper.from_array(attr, name)
    if isinstance(attr, (list, tuple)) and not attr:
        return onnx.AttributeProto(name=name, type=onnx.AttributeProto.INTS)
    return onnx.helper.make_attribute(name, attr)


# ------------------------------------------------------------------------- rules


def _tensor(node: Node, index: int) -> TensorType:
    value = node.input(index)
    if value is None or not isinstance(value.type, TensorType):
        where = ", ".join(repr(name) for name in node.where[:3])
        raise InvalidModelError(f"{node.op} (node {where}): input {index} must be a tensor")
    return value.type


def _content(node: Node, index: int) -> list[Dim] | None:
    value = node.input(index)
    if value is None or value.content is None:
        return None
    return list(value.content.reshape(-1))


def _fail(node: Node, reason: str) -> InvalidModelError:
    where = ", ".join(repr(name) for name in node.where[:3])
    return InvalidModelError(f"{node.op} (node {where}): {reason}")


def broadcast(shapes: Sequence[Sequence[Dim | None]]) -> list[Dim | None]:
    """The shape that shapes broadcast to (NumPy rules).

    Two different symbolic sizes give the larger: one of them must then be 1 at run time.

    Raises:
        ValueError: two known sizes differ and neither is 1.
    """
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[Dim | None] = []
    for axis in range(-rank, 0):
        sizes = [shape[axis] for shape in shapes if len(shape) >= -axis]
        result.append(_broadcast_dim(sizes))
    return result


def _broadcast_dim(sizes: list[Dim | None]) -> Dim | None:
    numbers = {size for size in sizes if isinstance(size, int) and size != 1}
    if len(numbers) > 1:
        raise ValueError(f"sizes {sorted(numbers)} do not broadcast")
    if numbers:
        return numbers.pop()
    if None in sizes:
        return None
    symbolic = list(dict.fromkeys(size for size in sizes if isinstance(size, Sym)))
    if not symbolic:
        return 1
    size: Dim = symbolic[0]
    for other in symbolic[1:]:
        size = dims.maximum(size, other)
    return size


_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor")
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Mod", "Pow", "BitShift", "PRelu")
_VARIADIC = ("Max", "Min", "Sum", "Mean", "BitwiseAnd", "BitwiseOr", "BitwiseXor")


@type_rule(*_COMPARISONS, *_ARITHMETIC, *_VARIADIC, "Where")
def _broadcasting(node: Node) -> list[Type | None]:
    types = [_tensor(node, index) for index in range(len(node.inputs))]
    first = 1 if node.op_type == "Where" else 0
    dtype = "bool" if node.op_type in _COMPARISONS else types[first].dtype
    mixed = {t.dtype for t in types[first:]}
    if len(mixed) > 1 and node.op_type != "Pow":
        raise _fail(node, f"inputs have different dtypes ({', '.join(sorted(mixed))})")
    if any(t.shape is None for t in types):
        return [TensorType(dtype)]
    try:
        return [tensor_type(dtype, broadcast([t.dims for t in types]))]
    except ValueError as error:
        raise _fail(node, str(error)) from None


@type_rule("Reshape")
def _reshape(node: Node) -> list[Type | None]:
    data, wanted = _tensor(node, 0), _content(node, 1)
    if wanted is None:
        length = _tensor(node, 1).shape
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
        raise _fail(node, f"cannot reshape {data} to {shape}")
    return [tensor_type(data.dtype, shape)]


def _remaining(data: TensorType, rest: list[Dim | None], node: Node) -> Dim | None:
    """The size that -1 stands for."""
    if data.elements is None or any(size is None for size in rest):
        return None
    known = dims.product(size for size in rest if size is not None)
    size = dims.exact_div(data.elements, known)
    if size is None and isinstance(data.elements, int) and isinstance(known, int) and known:
        raise _fail(node, f"cannot reshape {data}: {known} does not divide its size")
    return size


@type_rule("Expand")
def _expand(node: Node) -> list[Type | None]:
    data, wanted = _tensor(node, 0), _content(node, 1)
    if wanted is None or data.shape is None:
        length = _tensor(node, 1).shape
        if data.shape is None or not length or not isinstance(length[0], int):
            return [TensorType(data.dtype)]
        return [tensor_type(data.dtype, [None] * max(length[0], len(data.shape)))]
    try:
        return [tensor_type(data.dtype, broadcast([data.shape, wanted]))]
    except ValueError as error:
        raise _fail(node, str(error)) from None


@type_rule("Concat")
def _concat(node: Node) -> list[Type | None]:
    types = [_tensor(node, index) for index in range(len(node.inputs))]
    if len({t.dtype for t in types}) > 1:
        raise _fail(node, "inputs have different dtypes")
    ranks = {t.rank for t in types if t.rank is not None}
    if len(ranks) > 1:
        raise _fail(node, f"inputs have different ranks ({sorted(ranks)})")
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
            raise _fail(node, f"inputs disagree on axis {k} ({numbers})")
        shape.append(numbers[0] if numbers else sizes[0])
    return [tensor_type(types[0].dtype, shape)]


def _axis(node: Node, axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise _fail(node, f"axis {axis} is out of range for rank {rank}")
    return axis % rank


@type_rule("Slice")
def _slice(node: Node) -> list[Type | None]:
    data = _tensor(node, 0)
    if data.shape is None:
        return [data]
    starts, ends, axes, steps = (_content(node, k) for k in range(1, 5))
    if node.input(3) is None:
        axes = list(range(len(starts))) if starts is not None else None
    elif axes is None:
        return [tensor_type(data.dtype, [None] * len(data.shape))]
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


def slice_length(size: Dim, start: Dim | None, end: Dim | None, step: Dim | None) -> Dim | None:
    """How many elements `[start:end:step]` takes of an axis of `size`; None if not expressible."""
    if not isinstance(step, int) or start is None or end is None:
        return None
    if all(isinstance(x, int) for x in (size, start, end)):
        return len(sliced(size, start, end, step))  # type: ignore[arg-type]
    if step <= 0:
        if step == -1 and start == -1 and isinstance(end, int) and end < -(2**31):
            return size
        return None
    first, last = (_clamped(bound, size) for bound in (start, end))
    if first is None or last is None:
        return None
    # A longer step takes one element too; the sum in the quotient must stay within int64.
    return dims.maximum(dims.ceildiv(last - first, min(step, 2**31)), 0)


def sliced(size: int, start: int, end: int, step: int) -> range:
    """The positions that `[start:end:step]` takes of an axis of `size`.

    Unlike NumPy, ONNX starts a walk backwards from before the first element at the first element.
    """
    if step > 0:
        return range(*slice(start, end, step).indices(size))
    stop = None if end < -size else end
    return range(*slice(max(start, -size), stop, step).indices(size))


def _clamped(bound: Dim, size: Dim) -> Dim | None:
    """A slice bound as a position in [0, size]."""
    if isinstance(bound, int):
        if bound <= -(2**31):
            return 0
        if bound >= 2**31 - 1:
            return size
        position: Dim = bound if bound >= 0 else size + bound
        return dims.maximum(position, 0) if bound < 0 else dims.minimum(position, size)
    if dims.is_nonnegative(bound):
        return dims.minimum(bound, size)
    return None


@type_rule("Tile")
def _tile(node: Node) -> list[Type | None]:
    data, repeats = _tensor(node, 0), _content(node, 1)
    if data.shape is None or repeats is None or len(repeats) != len(data.shape):
        return [tensor_type(data.dtype, None if data.shape is None else [None] * len(data.shape))]
    return [tensor_type(data.dtype, [a * b for a, b in zip(data.shape, repeats)])]


@type_rule("Range")
def _range(node: Node) -> list[Type | None]:
    contents = [_content(node, k) for k in range(3)]
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
    return [tensor_type(_tensor(node, 0).dtype, [length])]


@type_rule("ConstantOfShape")
def _constant_of_shape(node: Node) -> list[Type | None]:
    from graphopt.ir.types import dtype_of

    fill = node.attrs.get("value")
    dtype = "float32" if fill is None else dtype_of(fill)
    shape = _content(node, 0)
    if shape is None:
        length = _tensor(node, 0).shape
        rank = length[0] if length else None
        return [tensor_type(dtype, [None] * rank if isinstance(rank, int) else None)]
    return [tensor_type(dtype, shape)]


@type_rule("Flatten")
def _flatten(node: Node) -> list[Type | None]:
    data = _tensor(node, 0)
    if data.shape is None:
        return [tensor_type(data.dtype, [None, None])]
    axis = node.attr("axis")
    axis = axis + len(data.shape) if axis < 0 else axis
    parts = data.shape[:axis], data.shape[axis:]
    return [tensor_type(data.dtype, [dims.product(part) for part in parts])]


_REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")


@type_rule(*(f"Reduce{kind}" for kind in _REDUCTIONS))
def _reduce(node: Node) -> list[Type | None]:
    data, axes = _tensor(node, 0), _content(node, 1)
    if data.shape is None:
        return [data]
    rank, keepdims = len(data.shape), node.attr("keepdims")
    if node.input(1) is not None and axes is None:
        length = _tensor(node, 1).shape
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
    data, count = _tensor(node, 0), len(node.outputs)
    if data.shape is None:
        return [TensorType(data.dtype)] * count
    axis = _axis(node, node.attr("axis"), len(data.shape))
    sizes: Sequence[Dim | None] | None = _content(node, 1)
    if node.input(1) is None:
        chunk = dims.ceildiv(data.shape[axis], count)
        sizes = [*[chunk] * (count - 1), data.shape[axis] - chunk * (count - 1)]
    if sizes is None or len(sizes) != count:
        sizes = [None] * count
    shapes = [[*data.shape[:axis], size, *data.shape[axis + 1 :]] for size in sizes]
    return [tensor_type(data.dtype, shape) for shape in shapes]


@type_rule("Pad")
def _pad(node: Node) -> list[Type | None]:
    data, pads, axes = _tensor(node, 0), _content(node, 1), _content(node, 3)
    if data.shape is None:
        return [data]
    unknown = tensor_type(data.dtype, [None] * len(data.shape))
    if pads is None or (node.input(3) is not None and axes is None):
        return [unknown]
    where = [int(a) % len(data.shape) for a in axes or range(len(data.shape))]  # type: ignore
    if len(pads) != 2 * len(where):
        raise _fail(node, f"{len(pads)} pads for {len(where)} axes")
    shape: list[Dim | None] = list(data.shape)
    for k, axis in enumerate(where):
        shape[axis] = data.shape[axis] + pads[k] + pads[k + len(where)]
    return [tensor_type(data.dtype, shape)]


@type_rule("TopK")
def _topk(node: Node) -> list[Type | None]:
    data, count = _tensor(node, 0), _content(node, 1)
    if data.shape is None:
        return [data, TensorType("int64")]
    axis = _axis(node, node.attr("axis"), len(data.shape))
    shape = [*data.shape[:axis], count[0] if count else None, *data.shape[axis + 1 :]]
    return [tensor_type(data.dtype, shape), tensor_type("int64", shape)]


@type_rule("If")
def _if(node: Node) -> list[Type | None]:
    branches = [node.attrs["then_branch"], node.attrs["else_branch"]]
    pairs = zip(branches[0].outputs, branches[1].outputs)
    return [join(a.type, b.type) for a, b in pairs]


def join(a: Type, b: Type) -> Type | None:
    """What is true of both types; sizes that differ are unknown (None)."""
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
            return TensorType(a.dtype or b.dtype)
        shape = [x if x == y else None for x, y in zip(a.shape, b.shape)]
        return tensor_type(a.dtype or b.dtype, shape)
    if isinstance(a, SequenceType) and isinstance(b, SequenceType):
        element = join(a.element, b.element)
        return SequenceType(element) if isinstance(element, TensorType) else None
    return None


@type_rule("Loop")
def _loop(node: Node) -> list[Type | None]:
    body: Graph = node.attrs["body"]
    carried = len(node.inputs) - 2
    types: list[Type | None] = []
    for k, value in enumerate(body.outputs[1:]):
        if k < carried:
            initial = node.inputs[2 + k]
            types.append(join(initial.type, value.type) if initial is not None else value.type)
        else:
            types.append(_stacked(value, loop_trip_count(node)))
    return types


def loop_trip_count(node: Node) -> Dim | None:
    """The number of iterations of a Loop whose condition stays true; None if not known."""
    body: Graph = node.attrs["body"]
    trips, start, goes_on = _content(node, 0), _content(node, 1), body.outputs[0]
    while goes_on.producer is not None and goes_on.producer.op == "Identity":
        (goes_on,) = goes_on.producer.inputs  # type: ignore[assignment]
    always = goes_on is body.inputs[1] or known_ints(goes_on.content) == [1]
    if trips is None or not always or (node.input(1) is not None and start != [True]):
        return None
    return trips[0]


def _stacked(value: Value, count: Dim | None) -> Type | None:
    type_ = value.type
    if not isinstance(type_, TensorType) or type_.shape is None:
        return TensorType(type_.dtype) if isinstance(type_, TensorType) else None
    return tensor_type(type_.dtype, [count, *type_.shape])


@type_rule("Scan")
def _scan(node: Node) -> list[Type | None]:
    body: Graph = node.attrs["body"]
    scanned = node.attr("num_scan_inputs")
    states = len(node.inputs) - scanned
    axes = node.attr("scan_input_axes") or [0] * scanned
    first = _tensor(node, states)
    length = first.dims[axes[0]] if first.shape is not None else None
    types: list[Type | None] = [value.type for value in body.outputs[:states]]
    out_axes = node.attr("scan_output_axes") or [0] * (len(body.outputs) - states)
    for value, axis in zip(body.outputs[states:], out_axes):
        stacked = _stacked(value, length)
        if axis and isinstance(stacked, TensorType) and stacked.shape is not None:
            rest = list(stacked.shape[1:])
            rest.insert(axis % len(stacked.shape), length)  # type: ignore[arg-type]
            stacked = tensor_type(stacked.dtype, rest)
        types.append(stacked)
    return types
