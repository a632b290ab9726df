"""What small integer tensors hold, in terms of symbolic sizes.

Exporters compute shapes with ordinary ops: `Shape → Gather → Mul → Concat → Reshape`. Following
these values as arrays of `Dim`s is what lets a symbolic batch pass through such chains. An array of
content is a NumPy object array of `int`, `bool` or `Sym`, with the tensor's own shape.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from graphopt.ir import dims
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Node
from graphopt.ir.slices import sliced
from graphopt.ir.types import TensorType, dtype_to_numpy, is_integer

MAX_ELEMENTS = 256

Content = np.ndarray | None
Rule = Callable[[Node, list[Content]], Content]


def content_of(array: np.ndarray) -> Content:
    """The content of a constant; None if it is large or not made of integers."""
    if array.size > MAX_ELEMENTS or array.dtype.kind not in "iub":
        return None
    content = np.empty(array.shape, dtype=object)
    for index in np.ndindex(array.shape):
        content[index] = array[index].item()
    return content


def known_ints(content: Content) -> list[int] | None:
    """The elements in order, if all of them are known numbers."""
    if content is None or any(isinstance(element, Sym) for element in content.flat):
        return None
    return [int(element) for element in content.flat]


def as_array(content: np.ndarray, dtype: str) -> np.ndarray | None:
    """The content as an ordinary array, None if an element is symbolic or does not fit."""
    elements = known_ints(content)
    if elements is None:
        return None
    numpy_dtype = dtype_to_numpy(dtype)
    if is_integer(dtype) and elements:
        limits = np.iinfo(numpy_dtype)
        if min(elements) < limits.min or max(elements) > limits.max:
            return None
    return np.array(elements, dtype=numpy_dtype).reshape(content.shape)


def infer_content(node: Node) -> Content:
    """The content of the first output of `node`, None where it cannot be told."""
    rule = _RULES.get(node.op_type) if node.domain == "" else None
    type_ = node.outputs[0].type if node.outputs else None
    if rule is None or not isinstance(type_, TensorType):
        return None
    if not (is_integer(type_.dtype) or type_.dtype == "bool"):
        return None
    contents = [None if value is None else value.content for value in node.inputs]
    try:
        content = rule(node, contents)
    except (ArithmeticError, IndexError, TypeError, ValueError):
        return None  # the op fails at run time, or mixes what has no symbolic form
    if content is None:
        return None
    content = np.asarray(content, dtype=object)
    fits = content.size <= MAX_ELEMENTS and (type_.rank is None or content.ndim == type_.rank)
    return content if fits else None


def _constant(node: Node, contents: list[Content]) -> Content:
    for name in ("value", "value_int", "value_ints"):
        if name in node.attrs:
            return content_of(np.asarray(node.attrs[name]))
    return None


def _shape(node: Node, contents: list[Content]) -> Content:
    type_ = node.inputs[0].type if node.inputs[0] is not None else None
    if not isinstance(type_, TensorType) or type_.shape is None:
        return None
    shape = type_.shape[slice(node.attr("start", 0), node.attr("end", None))]
    return _objects(shape)


def _objects(elements: Any) -> np.ndarray:
    content = np.empty(len(elements), dtype=object)
    content[:] = elements
    return content


def _size(node: Node, contents: list[Content]) -> Content:
    type_ = node.inputs[0].type if node.inputs[0] is not None else None
    if not isinstance(type_, TensorType) or type_.elements is None:
        return None
    return _scalar(type_.elements)


def _scalar(element: Any) -> np.ndarray:
    content = np.empty((), dtype=object)
    content[()] = element
    return content


def _all_known(rule: Callable[[Node, list[np.ndarray]], Content]) -> Rule:
    def checked(node: Node, contents: list[Content]) -> Content:
        known = [content for content in contents if content is not None]
        present = sum(value is not None for value in node.inputs)
        return rule(node, known) if len(known) == present else None

    return checked


@_all_known
def _slice(node: Node, contents: list[np.ndarray]) -> Content:
    data, starts, ends = contents[:3]
    axes = list(contents[3]) if len(contents) > 3 else range(len(starts))
    steps = list(contents[4]) if len(contents) > 4 else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps):
        positions = np.array(sliced(data.shape[axis], start, end, step), np.int64)
        data = data.take(positions, axis)
    return data


@_all_known
def _reshape(node: Node, contents: list[np.ndarray]) -> Content:
    type_ = node.output.type
    if not isinstance(type_, TensorType) or not type_.is_static:
        return None
    return contents[0].reshape(type_.dims)  # type: ignore[arg-type]  # all of them are numbers


@_all_known
def _expand(node: Node, contents: list[np.ndarray]) -> Content:
    shape = known_ints(contents[1])
    if shape is None or math.prod(shape) > MAX_ELEMENTS:
        return None
    return contents[0] * np.ones(shape, dtype=object)


@_all_known
def _range(node: Node, contents: list[np.ndarray]) -> Content:
    start, limit, delta = (known_ints(content) for content in contents)
    if start is None or limit is None or delta is None:
        return None
    elements = range(start[0], limit[0], delta[0])
    return _objects(list(elements)) if len(elements) <= MAX_ELEMENTS else None


def _constant_of_shape(node: Node, contents: list[Content]) -> Content:
    shape = known_ints(contents[0])
    fill = node.attrs.get("value", np.zeros(1))
    if shape is None or math.prod(shape) > MAX_ELEMENTS:
        return None
    return np.full(shape, np.asarray(fill).reshape(-1)[0].item(), dtype=object)


def _truncated(a: Any, b: Any) -> Any:
    """ONNX integer division rounds towards zero; for counts that is the floor."""
    if isinstance(a, Sym) or isinstance(b, Sym):
        if not (dims.is_nonnegative(a) and dims.is_nonnegative(b)):
            raise ArithmeticError("the sign of a symbolic quotient is not known")
        return dims.floordiv(a, b)
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _equal(a: Any, b: Any) -> bool:
    difference = a - b
    if isinstance(difference, int):
        return difference == 0
    # A count plus something positive is never zero; otherwise it depends on the sizes.
    if dims.is_nonnegative(difference - 1) or dims.is_nonnegative(-difference - 1):
        return False
    raise ArithmeticError("equality depends on the sizes")


def _less(a: Any, b: Any) -> bool:
    difference = b - a
    if isinstance(difference, int):
        return difference > 0
    if dims.is_nonnegative(difference - 1):
        return True
    if dims.is_nonnegative(-difference):
        return False
    raise ArithmeticError("order depends on the sizes")


def _elementwise(function: Callable[..., Any]) -> Rule:
    @_all_known
    def rule(node: Node, contents: list[np.ndarray]) -> Content:
        return np.asarray(np.frompyfunc(function, len(contents), 1)(*contents), dtype=object)

    return rule


def _absorbed(function: Callable[..., Any], absorbing: bool) -> Rule:
    """An `And` or `Or`, known also where one operand alone decides all elements."""
    elementwise = _elementwise(function)

    def rule(node: Node, contents: list[Content]) -> Content:
        type_ = node.output.type
        decided = any(c is not None and all(e is absorbing for e in c.flat) for c in contents)
        if decided and isinstance(type_, TensorType) and type_.is_static:
            return np.full(type_.dims, absorbing, dtype=object)  # type: ignore[arg-type]
        return elementwise(node, contents)

    return rule


def _folded(function: Callable[[Any, Any], Any]) -> Rule:
    @_all_known
    def rule(node: Node, contents: list[np.ndarray]) -> Content:
        result = contents[0]
        for other in contents[1:]:
            result = np.asarray(np.frompyfunc(function, 2, 1)(result, other), dtype=object)
        return result

    return rule


def _reduce(function: Callable[[Any, Any], Any]) -> Rule:
    @_all_known
    def rule(node: Node, contents: list[np.ndarray]) -> Content:
        if contents[0].ndim != 1 or contents[0].size == 0:
            return None
        total = contents[0][0]
        for element in contents[0][1:]:
            total = function(total, element)
        return _objects([total]) if node.attr("keepdims") else _scalar(total)

    return rule


@_all_known
def _where(node: Node, contents: list[np.ndarray]) -> Content:
    chosen = np.frompyfunc(lambda condition, x, y: x if condition else y, 3, 1)
    if known_ints(contents[0]) is None:
        return None
    return np.asarray(chosen(*contents), dtype=object)


def _cast(node: Node, contents: list[Content]) -> Content:
    content, type_ = contents[0], node.output.type
    if content is None or not isinstance(type_, TensorType):
        return None
    if type_.dtype == "bool":
        return np.asarray(np.frompyfunc(lambda e: not _equal(e, 0), 1, 1)(content), dtype=object)
    if known_ints(content) is not None:
        return None if as_array(content, type_.dtype) is None else content
    # Sizes beyond 2**31 do not occur in practice; narrower casts of a size are not followed.
    return content if type_.dtype in ("int64", "int32", "uint64") else None


def _gather(node: Node, contents: list[Content]) -> Content:
    data, indices = contents[:2]
    positions = known_ints(indices)
    if data is None or indices is None or positions is None:
        return None
    return data.take(np.array(positions, dtype=np.int64).reshape(indices.shape), node.attr("axis"))


_RULES: dict[str, Rule] = {
    "Constant": _constant,
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Cast": _cast,
    "Where": _where,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Flatten": _reshape,
    "Expand": _expand,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "Identity": lambda node, contents: contents[0],
    "Concat": _all_known(lambda node, c: np.concatenate(c, axis=node.attr("axis"))),
    "Transpose": _all_known(lambda node, c: c[0].transpose(node.attr("perm"))),
    "Add": _elementwise(operator.add),
    "Sub": _elementwise(operator.sub),
    "Mul": _elementwise(operator.mul),
    "Neg": _elementwise(operator.neg),
    "Div": _elementwise(_truncated),
    "Equal": _elementwise(_equal),
    "Less": _elementwise(_less),
    "Greater": _elementwise(lambda a, b: _less(b, a)),
    "LessOrEqual": _elementwise(lambda a, b: not _less(b, a)),
    "GreaterOrEqual": _elementwise(lambda a, b: not _less(a, b)),
    "Not": _elementwise(operator.not_),
    "And": _absorbed(lambda a, b: bool(a and b), absorbing=False),
    "Or": _absorbed(lambda a, b: bool(a or b), absorbing=True),
    "Min": _folded(dims.minimum),
    "Max": _folded(dims.maximum),
    "Sum": _folded(operator.add),
    "ReduceProd": _reduce(operator.mul),
    "ReduceSum": _reduce(operator.add),
    "ReduceMax": _reduce(dims.maximum),
    "ReduceMin": _reduce(dims.minimum),
}
