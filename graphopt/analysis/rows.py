"""Whether a model treats the samples of a batch one by one, so that parts of it can be run apart.

Every value gets the axis that its samples lie on, or none where it does not depend on the batch. An
op that is not known to keep samples apart ends the analysis: a model is independent by proof only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphopt.ir.dims import Sym, product, symbols
from graphopt.ir.graph import Graph, Node, Value

_ELEMENTWISE = frozenset(
    [
        *("Abs", "Ceil", "Clip", "Cast", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid"),
        *("HardSwish", "Identity", "IsNaN", "LeakyRelu", "Log", "Neg", "Not", "PRelu"),
        *("Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus", "Softsign"),
        *("Sqrt", "Tanh", "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less"),
        *("LessOrEqual", "Max", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Where", "Xor"),
    ]
)
_BATCH_FIRST = frozenset(
    f"graphopt::{name}"
    for name in [
        *("Attention", "BiInteraction", "CompressedInteraction", "CrossNetwork", "DotInteraction"),
        *("DynamicMatMul", "PairProducts", "ProductLookup", "QuantizedLookup", "TableRows"),
    ]
)
"""Ops whose computed operands and results have a sample per index of the first axis."""


_RECURRENT = ("GRU", "LSTM", "RNN")
_SHAPES = {("ConstantOfShape", 0), ("Expand", 1), ("Reshape", 1)}
"""Operands that say what shape a result has."""


class _Mixed(Exception):
    """Samples may meet in some op."""


def batch_inputs(graph: Graph) -> tuple[bool, ...] | None:
    """For each input, whether its first axis is the batch; None if samples may depend on others.

    Row `i` of every output then depends on row `i` of these inputs, and on the others as a whole.
    """
    names = {dim for value in graph.inputs for dim in value.tensor.dims[:1] if isinstance(dim, Sym)}
    if len(names) != 1 or not _is_clean(graph, batch := names.pop()):
        return None
    axes: dict[Value, int | None] = {
        value: 0 if value.tensor.dims[:1] == (batch,) else None for value in graph.inputs
    }
    try:
        for node in graph.nodes:
            for value in node.outputs:
                axes[value] = _axis_of(node, value, axes, batch)
    except _Mixed:
        return None
    if any(axes.get(value) != 0 for value in graph.outputs):
        return None
    return tuple(axes[value] == 0 for value in graph.inputs)


def _is_clean(graph: Graph, batch: Sym) -> bool:
    """True if the batch is the first axis of inputs and outputs, and appears in no other dim."""
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is None:
            return False
        inner = value.shape if value.shape[:1] != (batch,) else value.shape[1:]
        if any(symbols(dim) & symbols(batch) for dim in inner):
            return False
    return True


def _axis_of(node: Node, result: Value, axes: dict[Value, int | None], batch: Sym) -> int | None:
    if node.subgraphs or result.shape is None:
        raise _Mixed
    if result.content is not None:
        return None
    for place, value in enumerate(node.inputs):
        if value is not None and (node.op, place) not in _SHAPES and _counts(value, batch):
            raise _Mixed  # the number of samples, as data
    if _repeats(node, result, axes, batch):
        return _checked(result, result.shape.index(batch), batch)  # all samples are the same
    if not any(value is not None and axes.get(value) is not None for value in node.inputs):
        if any(symbols(dim) & symbols(batch) for dim in result.shape):
            raise _Mixed  # its size is the batch's, which it would lose in parts
        return None
    rule = _RULES.get(node.op)
    if rule is None and node.op in _ELEMENTWISE:
        rule = _aligned
    if rule is None and node.op in _BATCH_FIRST:
        rule = _first
    if rule is None:
        raise _Mixed
    axis = rule(node, [axes.get(value) if value is not None else None for value in node.inputs])
    if node.op in _RECURRENT and node.outputs[0] is result:
        axis *= 2  # after the directions, where samples are not first
    return _checked(result, axis, batch)


def _repeats(node: Node, result: Value, axes: dict[Value, int | None], batch: Sym) -> bool:
    """True if what is not of any sample is repeated for each."""
    dims = result.tensor.dims
    if node.op not in ("ConstantOfShape", "Expand") or batch not in dims:
        return False
    given = node.inputs[0]
    if node.op == "ConstantOfShape" or given is None:
        return True
    own = (1,) * (len(dims) - _rank(given)) + given.tensor.dims
    return axes.get(given) is None and own[dims.index(batch)] == 1


def _checked(result: Value, axis: int, batch: Sym) -> int:
    """`axis`, if it and no other has the size of the batch."""
    shape = result.tensor.dims
    others = [dim for k, dim in enumerate(shape) if k != axis]
    _must(axis < len(shape) and shape[axis] == batch)
    _must(not any(symbols(dim) & symbols(batch) for dim in others))
    return axis


def _counts(value: Value, batch: Sym) -> bool:
    """True if `value` holds a number that depends on how many samples there are."""
    content = value.content
    return content is not None and any(symbols(dim) & symbols(batch) for dim in content.flat)


Rule = Callable[[Node, Sequence[int | None]], int]


def _rank(value: Value | None) -> int:
    if value is None or value.rank is None:
        raise _Mixed
    return value.rank


def _must(holds: bool) -> None:
    if not holds:
        raise _Mixed


def _aligned(node: Node, axes: Sequence[int | None]) -> int:
    """Operands are aligned at their last axes; those without samples have size 1 there, or none."""
    rank = _rank(node.outputs[0])
    places = {
        rank - _rank(value) + axis for value, axis in zip(node.inputs, axes) if axis is not None
    }
    _must(len(places) == 1)
    return places.pop()


def _first(node: Node, axes: Sequence[int | None]) -> int:
    _must({axis for axis in axes if axis is not None} == {0})
    return 0


def _fixed_bags(node: Node, axes: Sequence[int | None]) -> int:
    """Bags without offsets are rows of ids (and of weights)."""
    _must(node.input(2 if node.op_type == "EmbeddingBag" else 3) is None)
    return _first(node, axes)


def _matmul(node: Node, axes: Sequence[int | None]) -> int:
    left, right = node.inputs[0], node.inputs[1]
    if axes[1] is None:
        _must(_rank(right) == 2 and axes[0] is not None and axes[0] < _rank(left) - 1)
        return int(axes[0] or 0)
    _must(axes[1] < _rank(right) - 2 and (axes[0] is None or axes[0] < _rank(left) - 2))
    return _aligned(node, axes)


def _gemm(node: Node, axes: Sequence[int | None]) -> int:
    _must(tuple(axes[:2]) == (0, None) and not node.attr("transA") and not any(axes[2:]))
    _must(len(axes) < 3 or axes[2] is None or _rank(node.inputs[2]) == 2)
    return 0


def _concat(node: Node, axes: Sequence[int | None]) -> int:
    _must(len(set(axes)) == 1 and axes[0] is not None)
    axis = int(axes[0] or 0)
    _must(node.attr("axis") % _rank(node.outputs[0]) != axis)
    return axis


def _gather(node: Node, axes: Sequence[int | None]) -> int:
    over = node.attr("axis") % _rank(node.inputs[0])
    if axes[0] is None:
        return over + int(axes[1] or 0)
    _must(axes[1] is None and axes[0] != over)
    return axes[0] if axes[0] < over else axes[0] - 1 + _rank(node.inputs[1])


def _reshape(node: Node, axes: Sequence[int | None]) -> int:
    """As much stays before the axis of the samples, and so what one index of it holds."""
    axis, given, made = axes[0], node.inputs[0], node.outputs[0].tensor.dims
    _must(axis is not None and given is not None)
    assert axis is not None and given is not None
    before, samples = product(given.tensor.dims[:axis]), given.tensor.dims[axis]
    found = [k for k, dim in enumerate(made) if dim == samples and product(made[:k]) == before]
    _must(len(found) == 1)
    return found[0]


def _recurrent(node: Node, axes: Sequence[int | None]) -> int:
    """Samples of sequences, and of states; lengths have no other axis."""
    of_samples = 0 if node.attrs.get("layout") else 1
    for place, (value, axis) in enumerate(zip(node.inputs, axes)):
        whole = place in (1, 2, 3, 7)  # weights, biases, peepholes
        lengths = place == 4 and node.op in _RECURRENT
        _must(value is None or axis == (None if whole else 0 if lengths else of_samples))
    return of_samples


def _transpose(node: Node, axes: Sequence[int | None]) -> int:
    rank = _rank(node.inputs[0])
    order = list(node.attr("perm") or reversed(range(rank)))
    _must(axes[0] is not None)
    return order.index(axes[0])


def _along(node: Node, axes: Sequence[int | None]) -> int:
    """Works along one axis, which is not that of the samples."""
    _must(axes[0] is not None and all(axis is None for axis in axes[1:]))
    _must(node.attr("axis", -1) % _rank(node.inputs[0]) != axes[0])
    return int(axes[0] or 0)


def _layer_norm(node: Node, axes: Sequence[int | None]) -> int:
    _must(axes[0] is not None and all(axis is None for axis in axes[1:]))
    _must(int(axes[0] or 0) < node.attr("axis", -1) % _rank(node.inputs[0]))
    return int(axes[0] or 0)


def _axes_operand(node: Node, place: int) -> set[int]:
    given = node.const(place) if place < len(node.inputs) else None
    _must(given is not None)
    rank = _rank(node.inputs[0])
    return {int(axis) % rank for axis in given.reshape(-1)}  # type: ignore[union-attr]


def _reduce(node: Node, axes: Sequence[int | None]) -> int:
    over, axis = _axes_operand(node, 1), axes[0]
    _must(axis is not None and axis not in over)
    assert axis is not None
    return axis if node.attr("keepdims") else axis - sum(other < axis for other in over)


def _windows(node: Node, axes: Sequence[int | None]) -> int:
    """Convolutions and pooling: the first axis is the samples, the second channels."""
    _must(axes[0] == 0 and all(axis is None for axis in axes[1:]))
    _must(len(node.outputs) == 1)  # positions that MaxPool gives count those of samples before
    return 0


def _pad(node: Node, axes: Sequence[int | None]) -> int:
    axis, pads, rank = axes[0], node.const(1), _rank(node.inputs[0])
    _must(axis is not None and pads is not None and node.input(3) is None)
    assert axis is not None and pads is not None
    _must(all(other is None for other in axes[1:]) and not pads[axis] and not pads[axis + rank])
    return axis


def _slice(node: Node, axes: Sequence[int | None]) -> int:
    _must(axes[0] is not None and axes[0] not in _axes_operand(node, 3))
    return int(axes[0] or 0)


_RULES: dict[str, Rule] = {
    "graphopt::EmbeddingBag": _fixed_bags,
    "graphopt::ProductEmbeddingBag": _fixed_bags,
    "graphopt::QuantizedEmbeddingBag": _fixed_bags,
    "Expand": _aligned,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Concat": _concat,
    "Gather": _gather,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Transpose": _transpose,
    "Softmax": _along,
    "LogSoftmax": _along,
    "Split": _along,
    "LayerNormalization": _layer_norm,
    "Slice": _slice,
    "Pad": _pad,
    "TopK": _along,
    **dict.fromkeys([*_RECURRENT, "graphopt::GRU", "graphopt::AttentionalGRU"], _recurrent),
    **dict.fromkeys(["Conv", "MaxPool", "AveragePool", "LpPool"], _windows),
    **dict.fromkeys(["GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"], _windows),
    **dict.fromkeys(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"], _reduce),
}
