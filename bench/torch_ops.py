"""ONNX's ops as calls of PyTorch, registered when imported."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx
from torch_builder import RULES, Builder, Rule, Term, Untranslatable, rule

from graphopt.ir.graph import Node
from graphopt.ir.types import dtype_from_onnx


def _elementwise(function: Callable[..., Any]) -> Rule:
    """All inputs in order: torch broadcasts as ONNX does."""

    def translate(b: Builder, node: Node) -> fx.Node:
        terms = [b[value] for value in node.inputs]
        if len(terms) > 2 and function in _FOLDED:
            return reduce(lambda x, y: b.call(function, x, y), terms)
        return b.call(function, *terms)

    return translate


_FOLDED = {torch.maximum, torch.minimum, torch.add}
RULES |= {
    op: _elementwise(function)
    for op, function in {
        "Abs": torch.abs,
        "Add": torch.add,
        "And": torch.logical_and,
        "Equal": torch.eq,
        "Erf": torch.erf,
        "Exp": torch.exp,
        "Greater": torch.gt,
        "GreaterOrEqual": torch.ge,
        "Less": torch.lt,
        "LessOrEqual": torch.le,
        "Log": torch.log,
        "Max": torch.maximum,
        "Min": torch.minimum,
        "Mul": torch.mul,
        "Neg": torch.neg,
        "Not": torch.logical_not,
        "Or": torch.logical_or,
        "Pow": torch.pow,
        "Reciprocal": torch.reciprocal,
        "Relu": torch.relu,
        "Sigmoid": torch.sigmoid,
        "Sqrt": torch.sqrt,
        "Sub": torch.sub,
        "Sum": torch.add,
        "Tanh": torch.tanh,
        "Where": torch.where,
    }.items()
}


@rule("Identity")
def _identity(b: Builder, node: Node) -> fx.Node:
    return b[node.inputs[0]]


@rule("Div")
def _div(b: Builder, node: Node) -> fx.Node:
    whole = node.output.dtype.startswith(("int", "uint"))  # ONNX then rounds towards zero
    return b.call(
        torch.div,
        b[node.inputs[0]],
        b[node.inputs[1]],
        rounding_mode="trunc" if whole else None,
    )


@rule("LeakyRelu")
def _leaky_relu(b: Builder, node: Node) -> fx.Node:
    return b.call(F.leaky_relu, b[node.inputs[0]], node.attr("alpha", 0.01))


@rule("Clip")
def _clip(b: Builder, node: Node) -> fx.Node:
    bounds = []
    for k in (1, 2):
        bound = node.const(k)
        if bound is None and node.input(k) is not None:
            raise Untranslatable("Clip with computed bounds")
        bounds.append(None if bound is None else bound.item())
    return b.call(torch.clamp, b[node.inputs[0]], *bounds)


@rule("Cast")
def _cast(b: Builder, node: Node) -> fx.Node:
    dtype = getattr(torch, dtype_from_onnx(node.attr("to")))
    return b.method("to", b[node.inputs[0]], dtype)


@rule("Softmax")
def _softmax(b: Builder, node: Node) -> fx.Node:
    return b.call(F.softmax, b[node.inputs[0]], dim=node.attr("axis"))


@rule("LayerNormalization")
def _layer_normalization(b: Builder, node: Node) -> fx.Node:
    x, axis = node.inputs[0], node.attr("axis")
    assert x is not None
    shape = [b.size(dim) for dim in x.tensor.dims[axis:]]
    bias = b[node.inputs[2]] if node.input(2) is not None else None
    epsilon = node.attr("epsilon")
    return b.call(F.layer_norm, b[x], shape, b[node.inputs[1]], bias, epsilon)


def _reduction(function: Callable[..., Any]) -> Rule:
    def translate(b: Builder, node: Node) -> fx.Node:
        axes = node.attrs.get("axes")
        if axes is None and node.input(1) is not None:
            axes = b.numbers(node.inputs[1])
        if not axes:
            if node.attr("noop_with_empty_axes", 0):
                return b[node.inputs[0]]
            axes = list(range(node.inputs[0].rank))
        kept = bool(node.attr("keepdims", 1))
        x = b[node.inputs[0]]
        if function in (torch.sum, torch.mean):  # torch widens sums of integers
            dtype = getattr(torch, node.output.dtype)
            return b.call(function, x, dim=axes, keepdim=kept, dtype=dtype)
        return b.call(function, x, dim=axes, keepdim=kept)

    return translate


RULES |= {
    "ReduceL2": _reduction(torch.linalg.vector_norm),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceSum": _reduction(torch.sum),
}

# ------------------------------------------------------------------ products


@rule("Gemm")
def _gemm(b: Builder, node: Node) -> fx.Node:
    alpha, beta = node.attr("alpha"), node.attr("beta")
    bias = node.input(2)
    x, weight = b[node.inputs[0]], transposed(b, node, 1, bool(node.attr("transB")))
    if node.attr("transA"):
        x = b.method("t", x)
    if bias is not None and bias.rank == 1 and alpha == beta == 1:
        return b.call(F.linear, x, weight, b[bias])
    total = b.call(F.linear, x, weight)
    if alpha != 1:
        total = b.call(torch.mul, total, alpha)
    return total if bias is None else b.call(torch.add, total, b[bias], alpha=beta)


def transposed(b: Builder, node: Node, k: int, already: bool) -> fx.Node:
    """Matrix input `k` as [n, k], the way `linear` stores weights."""
    array = node.const(k)
    if already:
        return b[node.inputs[k]]
    return b.buffer(array.T) if array is not None else b.method("t", b[node.inputs[k]])


@rule("MatMul")
def _matmul(b: Builder, node: Node) -> fx.Node:
    weight = node.const(1)
    if weight is not None and weight.ndim == 2:
        return b.call(F.linear, b[node.inputs[0]], b.buffer(weight.T))
    return b.call(torch.matmul, b[node.inputs[0]], b[node.inputs[1]])


# ------------------------------------------------------------------ lookups


@rule("Gather")
def _gather(b: Builder, node: Node) -> fx.Node:
    (data, ids), axis = node.inputs[:2], node.attr("axis", 0)
    assert data is not None and ids is not None
    if ids.const is not None:
        return _picked(b, b[data], data.tensor.dims, axis, ids.const)
    if axis == 0 and data.rank == 2:
        return b.call(F.embedding, b[ids], b[data])
    index = (*[slice(None)] * (axis % data.rank), b.method("long", b[ids]))
    return b.call(operator.getitem, b[data], index)


def _picked(b: Builder, x: fx.Node, dims: Any, axis: int, places: np.ndarray) -> fx.Node:
    """The elements at constant places of an axis."""
    if places.ndim == 0:
        return b.method("select", x, axis, int(places))
    if places.ndim > 1 or (places < 0).any():
        index = (*[slice(None)] * (axis % len(dims)), b.buffer(places))
        return b.call(operator.getitem, x, index)
    return b.method("index_select", x, axis, b.buffer(places))


@rule("GatherND")
def _gather_nd(b: Builder, node: Node) -> fx.Node:
    data, ids = node.inputs
    batch = node.attr("batch_dims", 0)
    places = _columns(b, node)
    for axis in range(batch):  # each sample picks from what is its own
        shape = [1] * (ids.rank - 1)
        shape[axis] = -1
        own = b.call(torch.arange, b.size(ids.tensor.dims[axis]), device=_device(b))
        places.insert(axis, b.method("view", own, shape))
    return b.call(operator.getitem, b[data], tuple(places))


def _columns(b: Builder, node: Node) -> list[Term]:
    """The ids of GatherND or ScatterND, axis by axis."""
    ids = node.inputs[1]
    width = ids.tensor.dims[-1]
    if not isinstance(width, int):
        raise Untranslatable(f"{node.op} of unknown depth")
    return [b.method("select", b[ids], -1, k) for k in range(width)]


@rule("ScatterND")
def _scatter_nd(b: Builder, node: Node) -> fx.Node:
    if node.attr("reduction", "none") != "none":
        raise Untranslatable("ScatterND that reduces")
    data, _, updates = node.inputs
    return b.call(torch.index_put, b[data], _columns(b, node), b[updates])


@rule("GatherElements")
def _gather_elements(b: Builder, node: Node) -> fx.Node:
    data, ids = (b[value] for value in node.inputs)
    return b.call(torch.gather, data, node.attr("axis"), ids)


@rule("ScatterElements")
def _scatter_elements(b: Builder, node: Node) -> fx.Node:
    if node.attr("reduction", "none") != "none":
        raise Untranslatable("ScatterElements that reduces")
    data, ids, updates = (b[value] for value in node.inputs)
    return b.call(torch.scatter, data, node.attr("axis"), ids, updates)


# ------------------------------------------------------------------ shapes


@rule("Reshape")
def _reshape(b: Builder, node: Node) -> fx.Node:
    x = b[node.inputs[0]]
    shape = b.numbers(node.inputs[1])
    if not node.attr("allowzero", 0):
        kept = [isinstance(size, int) and size == 0 for size in shape]
        shape = [b.method("size", x, k) if kept[k] else size for k, size in enumerate(shape)]
    return b.method("reshape", x, shape)


@rule("Flatten")
def _flatten(b: Builder, node: Node) -> fx.Node:
    if node.attr("axis") != 1:
        raise Untranslatable("Flatten at another axis than 1")
    return b.method("flatten", b[node.inputs[0]], 1)


@rule("Transpose")
def _transpose(b: Builder, node: Node) -> fx.Node:
    rank = node.inputs[0].rank
    order = node.attr("perm") or list(range(rank))[::-1]
    return b.method("permute", b[node.inputs[0]], order)


@rule("Squeeze")
def _squeeze(b: Builder, node: Node) -> fx.Node:
    if node.input(1) is None:
        return b.method("squeeze", b[node.inputs[0]])
    return b.method("squeeze", b[node.inputs[0]], tuple(b.numbers(node.inputs[1])))


@rule("Unsqueeze")
def _unsqueeze(b: Builder, node: Node) -> fx.Node:
    rank = node.output.rank
    x = b[node.inputs[0]]
    for axis in sorted(axis % rank for axis in b.numbers(node.inputs[1])):
        x = b.method("unsqueeze", x, axis)
    return x


@rule("Concat")
def _concat(b: Builder, node: Node) -> fx.Node:
    return b.call(torch.cat, [b[value] for value in node.inputs], node.attr("axis"))


@rule("Split")
def _split(b: Builder, node: Node) -> list[fx.Node]:
    axis = node.attr("axis", 0)
    sizes = [b.size(value.tensor.dims[axis]) for value in node.outputs]
    parts = b.method("split", b[node.inputs[0]], sizes, axis)
    return [b.call(operator.getitem, parts, k) for k in range(len(sizes))]


@rule("Slice")
def _slice(b: Builder, node: Node) -> fx.Node:
    starts, ends = (b.numbers(node.inputs[k]) for k in (1, 2))
    rank = node.inputs[0].rank
    axes = range(len(starts)) if node.input(3) is None else b.numbers(node.inputs[3])
    steps = [1] * len(starts) if node.input(4) is None else b.numbers(node.inputs[4])
    index: list[Term] = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, axes, steps):
        if not isinstance(step, int) or step < 1:
            raise Untranslatable("Slice that goes backwards")
        index[axis] = slice(start, end, step)
    return b.call(operator.getitem, b[node.inputs[0]], tuple(index))


@rule("Expand")
def _expand(b: Builder, node: Node) -> fx.Node:
    shape = [b.size(dim) for dim in node.output.tensor.dims]
    return b.method("expand", b[node.inputs[0]], shape)


@rule("Shape")
def _shape(b: Builder, node: Node) -> fx.Node:
    # For users that need a tensor; those that take numbers have them from `Builder.numbers`.
    return b.call(torch.tensor, b.numbers(node.output), device=_device(b))


@rule("ConstantOfShape")
def _constant_of_shape(b: Builder, node: Node) -> fx.Node:
    value = node.attr("value")
    number = 0.0 if value is None else np.asarray(value).item()
    dtype = getattr(torch, node.output.dtype)
    return b.call(torch.full, b.numbers(node.inputs[0]), number, dtype=dtype, device=_device(b))


def _device(b: Builder) -> fx.Node:
    """Where the inputs are."""
    first = next(iter(b.terms.values()))
    return b.call(getattr, first, "device")


@rule("Range")
def _range(b: Builder, node: Node) -> fx.Node:
    bounds = [b.numbers(value)[0] for value in node.inputs]
    dtype = getattr(torch, node.output.dtype)
    return b.call(torch.arange, *bounds, dtype=dtype, device=_device(b))


@rule("Trilu")
def _trilu(b: Builder, node: Node) -> fx.Node:
    function = torch.triu if node.attr("upper", 1) else torch.tril
    diagonal = 0 if node.input(1) is None else b.numbers(node.inputs[1])[0]
    return b.call(function, b[node.inputs[0]], diagonal)


@rule("NonZero")
def _nonzero(b: Builder, node: Node) -> fx.Node:
    return b.method("t", b.call(torch.nonzero, b[node.inputs[0]]))


@rule("TopK")
def _top_k(b: Builder, node: Node) -> list[fx.Node]:
    count = b.numbers(node.inputs[1])[0]
    options = {"largest": bool(node.attr("largest")), "sorted": bool(node.attr("sorted"))}
    both = b.call(torch.topk, b[node.inputs[0]], count, node.attr("axis"), **options)
    return [b.call(operator.getitem, both, k) for k in (0, 1)]
