"""Ops without a converter, replaced by the function body that ONNX or `graphopt.ops` gives."""

from __future__ import annotations

import onnx
import onnx.inliner

from graphopt import ops
from graphopt.errors import InvalidModelError, UnsupportedOpError
from graphopt.ir import onnx_io, schema
from graphopt.ir.copying import copy_node
from graphopt.ir.dims import Sym
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.infer import make_attribute
from graphopt.ir.types import TensorType, type_to_proto
from graphopt.targets.relax.converters import has_converter

_BODY = "graphopt.body"
_MAX_DEPTH = (
    8  # bodies nest three deep at most (SoftmaxCrossEntropyLoss → NegativeLogLikelihoodLoss)
)


def expand_functions(graph: Graph, target: str = "cpu") -> bool:
    """Replace ops that no converter lowers for a kind of target, those of subgraphs included.

    Returns:
        True if any was.

    Raises:
        UnsupportedOpError: a body cannot be instantiated.
    """
    changed = False
    for _ in range(_MAX_DEPTH):
        found = [node for node in graph.walk() if is_expandable(node, target)]
        if not found:
            break
        for node in found:
            expand_function(node)
        changed = True
    return changed


def is_expandable(node: Node, target: str = "cpu") -> bool:
    """True for an op that no converter lowers and that has a function body."""
    if node.graph is None or has_converter(node.op_type, node.domain, target):
        return False
    if node.domain == ops.DOMAIN:
        return True
    found = schema.find(node.op_type, node.domain, node.graph.opset(node.domain))
    return found is not None and (found.has_function or found.has_context_dependent_function)


def expand_function(node: Node) -> None:
    """Replace `node` by the body of its op; the new nodes carry its origin."""
    graph = node.graph
    assert graph is not None
    try:
        body = onnx_io.from_proto(_inlined(node, graph))
    except (InvalidModelError, RuntimeError, ValueError) as error:
        reason = f"its function body cannot be instantiated ({error})"
        raise UnsupportedOpError(node.op, reason, node.where) from None
    values: dict[Value, Value] = {}
    present = node.operands
    values.update(zip(body.inputs, present))
    for inner in body.nodes:
        copied = copy_node(inner, graph, values, before=node)
        copied.origin = node.origin
    for old, result in zip([v for v in node.outputs if _is_used(v)], body.outputs):
        new = values.get(result)
        if new is None:
            assert result.const is not None
            new = graph.constant(result.const)
        graph.replace_uses(old, new)
    graph.erase(node)


def _is_used(value: Value) -> bool:
    return bool(value.uses)


def _inlined(node: Node, graph: Graph) -> onnx.ModelProto:
    """A model of this node alone, its op replaced by the op's body."""
    names = ["" if value is None else f"in{k}" for k, value in enumerate(node.inputs)]
    outputs = [f"out{k}" if _is_used(value) else "" for k, value in enumerate(node.outputs)]
    types = [onnx.TypeProto() if v is None else type_to_proto(_anonymous(v)) for v in node.inputs]
    call = onnx.helper.make_node(node.op_type, names, outputs, domain=node.domain)
    # References to an attribute that is not given would stay empty, whatever its default.
    attributes = schema.defaults(node.op_type, node.domain, graph.opset(node.domain)) | node.attrs
    call.attribute.extend(
        make_attribute(name, attr)
        for name, attr in attributes.items()
        if not isinstance(attr, Graph)
    )
    if node.domain == ops.DOMAIN:
        body = ops.function(node)
    else:
        body = _body(call, types, graph.opset(node.domain))
    call.op_type = body.name
    call.domain = body.domain = _BODY
    inputs = [onnx.helper.make_value_info(n, t) for n, t in zip(names, types) if n]
    results = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in outputs if name]
    imports = {**graph.opsets, **{o.domain: o.version for o in body.opset_import}, _BODY: 1}
    model = onnx.helper.make_model(
        onnx.helper.make_graph([call], "body", inputs, results),
        functions=[body],
        opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in imports.items()],
        ir_version=10,
    )
    return onnx.inliner.inline_selected_functions(model, [(_BODY, body.name)])


def _body(call: onnx.NodeProto, types: list[onnx.TypeProto], version: int) -> onnx.FunctionProto:
    """The body that the schema gives for this call in a version of its domain."""
    found = schema.find(call.op_type, call.domain, version)
    assert found is not None
    function = onnx.FunctionProto()
    if found.has_context_dependent_function:
        written = max(v for v in found.context_dependent_function_opset_versions if v <= version)
        data = found.get_context_dependent_function_with_opset_version(
            written, call.SerializeToString(), [t.SerializeToString() for t in types]
        )
    else:
        written = max(v for v in found.function_opset_versions if v <= version)
        data = found.get_function_with_opset_version(written)
    function.ParseFromString(data)
    return function


def _anonymous(value: Value) -> TensorType:
    """The type with its symbolic sizes unnamed: the body is typed again where it is put."""
    assert isinstance(value.type, TensorType)
    if value.type.shape is None:
        return value.type
    shape = tuple(Sym.named("") if isinstance(d, Sym) else d for d in value.type.shape)
    return TensorType(value.type.dtype, shape)
