"""Types of If, Loop and Scan, and of what their bodies are given and hand on.

A body's inputs have the types of the first iteration when it is built; what later iterations may
change is then forgotten.
"""

from __future__ import annotations

from graphopt.ir.content import known_ints
from graphopt.ir.dims import Dim
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.infer import content_input, infer_node, tensor_input, tensor_type, type_rule
from graphopt.ir.types import SequenceType, TensorType, Type
from graphopt.ir.upgrade import OpCall


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
    trips = content_input(node, 0)
    return trips[0] if trips is not None and never_stops(node) else None


def never_stops(node: Node) -> bool:
    """True if the condition of a Loop is true from the start and stays so."""
    body: Graph = node.attrs["body"]
    start, goes_on = content_input(node, 1), body.outputs[0]
    while goes_on.producer is not None and goes_on.producer.op == "Identity":
        (goes_on,) = goes_on.producer.operands
    always = goes_on is body.inputs[1] or known_ints(goes_on.content) == [1]
    return always and (node.input(1) is None or start == [True])


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
    first = tensor_input(node, states)
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


def body_input_type(call: OpCall, index: int, declared: Type) -> Type:
    """What the body of a Loop or Scan is given for its input `index` in the first iteration."""
    if call.op_type == "Loop":
        if index < 2:
            return TensorType("int64" if index == 0 else "bool", ())
        value = call.inputs[index] if index < len(call.inputs) else None
        return declared if value is None else value.type
    if call.op_type == "Scan" and index < len(call.inputs):
        value = call.inputs[index]
        scanned = int(call.attrs.get("num_scan_inputs", 0))
        states = len(call.inputs) - scanned
        if value is None or index < states or not isinstance(value.type, TensorType):
            return declared if value is None else value.type
        if value.type.shape is None:
            return declared
        axes = call.attrs.get("scan_input_axes") or [0] * scanned
        shape = list(value.type.shape)
        del shape[axes[index - states]]
        return TensorType(value.type.dtype, tuple(shape))
    return declared


def widen_carried(node: Node, body: Graph) -> None:
    """Forget what a loop-carried value's type says of the first iteration only."""
    changed = False
    for value, _, after in _carried(node, body):
        joined = join(value.type, after.type)
        if joined is None or joined == value.type:
            continue
        if isinstance(joined, TensorType) and joined.shape is not None:
            shape = tuple(body.fresh_dim() if dim is None else dim for dim in joined.shape)
            joined = TensorType(joined.dtype, shape)
        if joined != value.type:
            value.type, changed = joined, True
            body._propagate(value.users)
    if changed:
        infer_node(node)


def narrow_carried(node: Node) -> bool:
    """Let carried values keep the shape of the first iteration, where a body gives that again.

    Sizes that were taken for different ones when the body was built may have become equal, and a
    rewritten body may say more. True if anything changed.
    """
    body = node.attrs.get("body")
    if not isinstance(body, Graph):
        return False
    wide: dict[Value, tuple[Type, Value]] = {}
    for value, first, after in _carried(node, body):
        ranks = [v.rank if isinstance(v.type, TensorType) else None for v in (value, first)]
        if None not in ranks and ranks[0] == ranks[1] and value.type != first.type:
            wide[value] = value.type, after
            value.type = first.type
    assumed = list(wide)
    while assumed:
        body._propagate(user for value in assumed for user in value.users)
        assumed = [value for value in wide if wide[value][1].type != value.type]
        for value in assumed:
            value.type = wide.pop(value)[0]
    if wide:
        assert node.graph is not None
        node.graph._propagate([node, *(user for v in node.outputs for user in v.users)])
    return bool(wide)


def _carried(node: Node, body: Graph) -> list[tuple[Value, Value, Value]]:
    """A body's input, what it is at first, and what comes after, of what a loop carries."""
    if node.op_type == "Loop":
        found = zip(body.inputs[2:], node.inputs[2:], body.outputs[1:])
    elif node.op_type == "Scan":
        states = len(node.inputs) - int(node.attr("num_scan_inputs"))
        found = zip(body.inputs[:states], node.inputs[:states], body.outputs[:states])
    else:
        return []
    return [(value, first, after) for value, first, after in found if first is not None]
