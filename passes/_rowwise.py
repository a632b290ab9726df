"""Which positions of its operands an op reads for one position of its result."""

from __future__ import annotations

from collections.abc import Callable

from graphopt.ir.dims import product
from graphopt.ir.graph import Node

Operands = list[tuple[int, int]]
"""Inputs by number, and the axis of each that goes with an axis of the result."""

ELEMENTWISE = frozenset(
    ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Mod", "Where", "PRelu"]
    + ["And", "Or", "Xor", "Not", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"]
    + ["Abs", "Cast", "Ceil", "Clip", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid"]
    + ["HardSwish", "Identity", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu"]
    + ["Round", "Selu", "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Tanh"]
)
_QUANTIZING = frozenset(["QuantizeLinear", "DequantizeLinear"])


def is_elementwise(node: Node) -> bool:
    """True if an element of the output depends on the elements of the operands at its place."""
    if node.op in _QUANTIZING:
        return all(value is not None and value.rank == 0 for value in node.inputs[1:])
    return node.op in ELEMENTWISE


def operands_at(node: Node, axis: int) -> Operands | None:
    """What must be known of the operands of `node` for one position along `axis` of its output.

    Operands that are not named are read whole, whatever the position. None for an op that computes
    an element along the axis from more than that position, and for ops that are not known here.
    """
    rule = _RULES.get(node.op)
    if rule is None or node.output.shape is None or any(v.uses for v in node.outputs[1:]):
        return None
    if any(v is not None and v.shape is None for v in node.inputs):
        return None
    return rule(node, axis)


def _elementwise(node: Node, axis: int) -> Operands | None:
    return _broadcast(node, axis, range(len(node.inputs)))


def _quantizing(node: Node, axis: int) -> Operands | None:
    return [(0, axis)] if is_elementwise(node) else None


def _broadcast(node: Node, axis: int, slots: range) -> Operands | None:
    """Operands that have an axis of the output; None where its size differs, other than by 1."""
    found, dims = [], node.output.tensor.dims
    for slot in slots:
        value = node.inputs[slot]
        place = axis - len(dims) + (value.rank or 0) if value is not None else -1
        if value is None or place < 0 or value.tensor.dims[place] == 1:
            continue
        if value.tensor.dims[place] != dims[axis]:
            return None
        found.append((slot, place))
    return found


def _matmul(node: Node, axis: int) -> Operands | None:
    """Also of integers, whose rows have one zero point, and whose columns may have one each."""
    shifts = [(value.rank, most) for value, most in zip(node.inputs[2:], (0, 1)) if value]
    if any(rank is None or rank > most for rank, most in shifts):
        return None
    ranks = [value.rank or 0 for value in node.inputs[:2] if value is not None]
    distance = node.output.tensor.rank - axis if node.output.tensor.rank else 0
    if min(ranks) < 2 or distance == 1:
        return None
    return [(0, ranks[0] - 2)] if distance == 2 else _broadcast(node, axis, range(2))


def _attention(node: Node, axis: int) -> Operands | None:
    """graphopt::Attention: a query gives a row, all keys and values being read."""
    if axis == 2:
        return None
    found = [(0, 1)] if axis == 1 else [(slot, 0) for slot in range(3)]
    for slot in (3, 4):
        value = node.input(slot)
        place = (2 if axis else 0) - 4 + (value.rank or 0) if value is not None else -1
        if value is not None and place >= 0 and value.tensor.dims[place] != 1:
            found.append((slot, place))
    return found


def _gemm(node: Node, axis: int) -> Operands | None:
    if axis != 0:
        return None
    addend = _broadcast(node, 0, range(2, len(node.inputs)))
    return None if addend is None else [(0, 1 if node.attr("transA") else 0), *addend]


def _along_others(node: Node, axis: int) -> Operands | None:
    """Softmax and the like, which mix along one axis only."""
    return None if axis == node.attr("axis") % len(node.output.tensor.dims) else [(0, axis)]


def _layer_normalization(node: Node, axis: int) -> Operands | None:
    return [(0, axis)] if axis < node.attr("axis") % len(node.output.tensor.dims) else None


def _transpose(node: Node, axis: int) -> Operands | None:
    perm = node.attr("perm") or list(range(len(node.output.tensor.dims)))[::-1]
    return [(0, perm[axis])]


def _reshape(node: Node, axis: int) -> Operands | None:
    source = node.inputs[0]
    assert source is not None
    before, after = source.tensor.dims, node.output.tensor.dims
    for place, dim in enumerate(before):
        if dim == after[axis] and product(before[:place]) == product(after[:axis]):
            return [(0, place)]
    return None


def _concat(node: Node, axis: int) -> Operands | None:
    if axis == node.attr("axis") % len(node.output.tensor.dims):
        return None
    return [(slot, axis) for slot in range(len(node.inputs))]


def _gather(node: Node, axis: int) -> Operands | None:
    data, indices = node.inputs[:2]
    assert data is not None and indices is not None and indices.rank is not None
    first = node.attr("axis") % len(data.tensor.dims)
    if first <= axis < first + indices.rank:
        return [(1, axis - first)]
    return [(0, axis if axis < first else axis - indices.rank + 1)]


_RULES: dict[str, Callable[[Node, int], Operands | None]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "Concat": _concat,
    "Gather": _gather,
    "Gemm": _gemm,
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _along_others,
    **dict.fromkeys(_QUANTIZING, _quantizing),
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "Reshape": _reshape,
    "Softmax": _along_others,
    "Transpose": _transpose,
    "graphopt::Attention": _attention,
}
