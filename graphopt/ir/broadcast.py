"""Shapes that broadcast, and the types of ops that work element by element."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.ir import dims
from graphopt.ir.dims import Dim, Sym
from graphopt.ir.graph import Node
from graphopt.ir.infer import (
    content_input,
    failure,
    require_sizes,
    tensor_input,
    tensor_type,
    type_rule,
)
from graphopt.ir.types import TensorType, Type


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
    types = [tensor_input(node, index) for index in range(len(node.inputs))]
    first = 1 if node.op_type == "Where" else 0
    dtype = "bool" if node.op_type in _COMPARISONS else types[first].dtype
    mixed = {t.dtype for t in types[first:]}
    if len(mixed) > 1 and node.op_type != "Pow":
        raise failure(node, f"inputs have different dtypes ({', '.join(sorted(mixed))})")
    if any(t.shape is None for t in types):
        return [TensorType(dtype)]
    try:
        return [tensor_type(dtype, broadcast([t.dims for t in types]))]
    except ValueError as error:
        raise failure(node, str(error)) from None


@type_rule("Expand")
def _expand(node: Node) -> list[Type | None]:
    data, wanted = tensor_input(node, 0), content_input(node, 1)
    if wanted is None or data.shape is None:
        length = tensor_input(node, 1).shape
        if data.shape is None or not length or not isinstance(length[0], int):
            return [TensorType(data.dtype)]
        return [tensor_type(data.dtype, [None] * max(length[0], len(data.shape)))]
    require_sizes(node, wanted)
    try:
        return [tensor_type(data.dtype, broadcast([data.shape, wanted]))]
    except ValueError as error:
        raise failure(node, str(error)) from None
