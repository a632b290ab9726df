"""Types of what a Loop or Scan carries from one iteration to the next.

A body's inputs have the types of the first iteration when it is built; what later iterations may
change is then forgotten.
"""

from __future__ import annotations

from graphopt.ir.graph import Graph, Node
from graphopt.ir.infer import infer_node, join
from graphopt.ir.types import TensorType, Type
from graphopt.ir.upgrade import OpCall


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
    if node.op_type not in ("Loop", "Scan"):
        return
    if node.op_type == "Loop":
        carried = zip(body.inputs[2:], body.outputs[1:])
    else:
        states = len(node.inputs) - int(node.attr("num_scan_inputs"))
        carried = zip(body.inputs[:states], body.outputs[:states])
    changed = False
    for value, after in carried:
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
