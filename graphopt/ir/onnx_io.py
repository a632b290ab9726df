"""ONNX files in and out, through onnx-graphsurgeon (the only module that imports it).

Weights stay where they are: external data is memory-mapped, in-file data is viewed in place. What is
read is checked first, because a model is untrusted input.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from graphopt.errors import GraphoptError, InvalidModelError, UnsupportedOpError
from graphopt.ir import schema
from graphopt.ir.dims import Sym, symbols
from graphopt.ir.external_data import TensorReader
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.infer import has_type_rule
from graphopt.ir.loop_types import body_input_type, widen_carried
from graphopt.ir.model_check import check_call, check_graph, inline_functions, opsets_of
from graphopt.ir.sizes import unify_sizes
from graphopt.ir.types import (
    SequenceType,
    TensorType,
    Type,
    dtype_from_onnx,
    dtype_to_onnx,
)
from graphopt.ir.upgrade import MIN_OPSET, OpCall, check_form, upgrade
from graphopt.ops import function_name, function_protos, op_type

FUNCTION_DOMAIN = "graphopt"

logging.getLogger("onnx_graphsurgeon").setLevel(logging.ERROR)
gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR


def load(path: str | Path) -> Graph:
    """Read a model file.

    Raises:
        InvalidModelError: the file is missing, damaged, not ONNX, or breaks ONNX's rules.
        UnsafePathError: external data points outside the model's folder.
        UnsupportedOpError: an op that no known operator set defines.
    """
    path = Path(path)
    if path.is_dir():
        raise InvalidModelError(f"{path}: is a directory; give the .onnx file inside it")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError:
        raise InvalidModelError(f"{path}: no such file") from None
    except OSError as error:
        raise InvalidModelError(f"{path}: cannot be read ({error.strerror})") from None
    except DecodeError:
        raise InvalidModelError(
            f"{path}: not an ONNX model, or cut short; export or copy it again"
        ) from None
    try:
        return from_proto(model, path.parent)
    except GraphoptError as error:
        error.args = (f"{path}: {error}",)
        raise


def from_proto(model: onnx.ModelProto, folder: Path = Path(".")) -> Graph:
    """Import a model; external data is looked for in `folder`."""
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise InvalidModelError("not an ONNX model: it has no graph")
    opsets = opsets_of(model)
    model = inline_functions(model, keep=FUNCTION_DOMAIN)
    check_graph(model.graph)
    source = gs.import_onnx(model)
    graph = Graph(source.name or "graph", {**opsets, "": max(opsets[""], MIN_OPSET)})
    graph.metadata = {"producer": f"{model.producer_name} {model.producer_version}".strip()}
    importer = _Importer(TensorReader(folder), opsets[""])
    importer.fill(graph, source, {})
    unify_sizes(graph)
    return graph


class _Importer:
    """Turns graphsurgeon graphs into ours, names into edges."""

    def __init__(self, tensors: TensorReader, opset: int) -> None:
        self.tensors, self.opset = tensors, opset

    def fill(self, graph: Graph, source: gs.Graph, scope: dict[str, Value]) -> None:
        """Append the inputs, nodes and outputs of `source`; `scope` maps visible names."""
        scope = dict(scope)
        seen: set[str] = set()
        for tensor in source.inputs:
            if tensor.name in seen:
                raise InvalidModelError(f"two inputs are called {tensor.name!r}")
            seen.add(tensor.name)
            if tensor.name not in scope or graph.parent is None:
                scope[tensor.name] = graph.add_input(tensor.name, self.type_of(tensor, graph))
        self._nodes(graph, source, scope)
        outputs = [self.value(tensor, graph, scope, "the graph") for tensor in source.outputs]
        names = [tensor.name for tensor in source.outputs]
        if len(set(names)) < len(names):
            raise InvalidModelError("two outputs have the same name")
        graph.set_outputs(outputs, names)

    def _nodes(self, graph: Graph, source: gs.Graph, scope: dict[str, Value]) -> None:
        for node in _in_order(source.nodes, scope):
            for tensor in node.outputs:
                if tensor.name and tensor.name in scope:
                    raise InvalidModelError(f"value {tensor.name!r} is computed twice")
            inputs = [
                self.value(t, graph, scope, f"node {node.name!r}") if t.name else None
                for t in node.inputs
            ]
            while inputs and inputs[-1] is None:
                inputs.pop()
            values = self._convert(node, inputs, graph, scope)
            scope.update((t.name, v) for t, v in zip(node.outputs, values) if t.name)

    def _convert(
        self, node: gs.Node, inputs: list[Value | None], graph: Graph, scope: dict[str, Value]
    ) -> Sequence[Value]:
        domain = "" if node.domain in (None, "ai.onnx") else node.domain
        if domain == FUNCTION_DOMAIN:
            node.op = op_type(node.op)
        known = schema.find(node.op, domain, self.opset if not domain else graph.opset(domain))
        if known is None and not has_type_rule(node.op, domain):
            raise UnsupportedOpError(
                f"{domain}::{node.op}" if domain else node.op,
                f"no such op in {domain or 'ai.onnx'} opset "
                f"{self.opset if not domain else graph.opsets.get(domain, '(not imported)')}",
                (node.name,) if node.name else tuple(t.name for t in node.outputs[:1]),
            )
        attrs: dict[str, Any] = {}
        call = OpCall(
            node.op,
            domain,
            inputs,
            attrs,
            [t.name or graph.fresh_name(node.op) for t in node.outputs],
            (node.name,) if node.name else tuple(t.name for t in node.outputs[:1]),
        )
        bodies: list[Graph] = []
        for name, attr in node.attrs.items():
            if isinstance(attr, gs.Graph):
                attrs[name] = self._subgraph(call, attr, graph, scope)
                bodies.append(attrs[name])
            elif isinstance(attr, gs.Constant):
                attrs[name] = self.tensors.read(attr._values.tensor)
            else:
                attrs[name] = attr
        if node.op == "Constant" and not domain:
            return [self._constant(call, graph)]
        values = upgrade(graph, call, self.opset)
        for body in bodies:
            if body.owner is not None:
                widen_carried(body.owner, body)
        return values

    def _constant(self, call: OpCall, graph: Graph) -> Value:
        for name, attr in call.attrs.items():
            if name == "value":
                return graph.constant(attr, call.outputs[0])
            if name in ("value_int", "value_ints"):
                return graph.constant(np.array(attr, np.int64), call.outputs[0])
            if name in ("value_float", "value_floats"):
                return graph.constant(np.array(attr, np.float32), call.outputs[0])
            if name in ("value_string", "value_strings"):
                return graph.constant(np.array(attr, object), call.outputs[0])
        raise UnsupportedOpError("Constant", "its value has an unsupported form", call.origin)

    def _subgraph(
        self, call: OpCall, source: gs.Graph, parent: Graph, scope: dict[str, Value]
    ) -> Graph:
        graph = Graph(source.name or "body", parent=parent)
        inner = dict(scope)
        for index, tensor in enumerate(source.inputs):
            declared = self.type_of(tensor, graph)
            type_ = body_input_type(call, index, declared)
            inner[tensor.name] = graph.add_input(tensor.name, type_)
        self.fill(graph, source, inner)
        return graph

    def value(self, tensor: gs.Tensor, graph: Graph, scope: dict[str, Value], user: str) -> Value:
        """The value called `tensor.name`; constants are read on first use."""
        if tensor.name in scope:
            return scope[tensor.name]
        if not isinstance(tensor, gs.Constant):
            raise InvalidModelError(f"{user} reads {tensor.name!r}, which nothing computes")
        values = tensor._values
        if isinstance(values, SparseValues):
            array = values.load()
        else:
            assert isinstance(values, LazyValues)
            array = self.tensors.read(values.tensor)
        scope[tensor.name] = graph.constant(array, tensor.name)
        return scope[tensor.name]

    def type_of(self, tensor: gs.Tensor, graph: Graph) -> Type:
        """The declared type of a graph input."""
        dtype = "" if tensor.dtype is None else dtype_from_onnx(_onnx_code(tensor.dtype))
        if tensor.shape is None:
            type_ = TensorType(dtype)
        else:
            type_ = TensorType(dtype, tuple(_dim(dim, graph) for dim in tensor.shape))
        return SequenceType(type_) if tensor.type == "sequence_type" else type_


def _onnx_code(dtype: Any) -> int:
    return dtype if isinstance(dtype, int) else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _dim(dim: Any, graph: Graph) -> Any:
    if isinstance(dim, int) and dim >= 0:
        return dim
    return Sym.named(dim) if isinstance(dim, str) and dim else graph.fresh_dim()


def _in_order(nodes: Iterable[gs.Node], scope: dict[str, Value]) -> list[gs.Node]:
    """The nodes, each after those that it reads from.

    Raises:
        InvalidModelError: nodes depend on each other in a circle.
    """
    producer = {t.name: k for k, n in enumerate(nodes) for t in n.outputs if t.name}
    needs = [{producer[n] for n in _names_read(node) if n in producer} for node in nodes]
    users: dict[int, list[int]] = {}
    for k, needed in enumerate(needs):
        for other in needed:
            users.setdefault(other, []).append(k)
    if all(max(needed, default=-1) < k for k, needed in enumerate(needs)):
        return list(nodes)
    ready = [k for k, needed in enumerate(needs) if not needed]
    order: list[int] = []
    while ready:
        k = ready.pop(0)
        order.append(k)
        for user in users.get(k, []):
            needs[user].discard(k)
            if not needs[user]:
                ready.append(user)
    nodes = list(nodes)
    if len(order) < len(nodes):
        stuck = next(nodes[k] for k, needed in enumerate(needs) if needed)
        raise InvalidModelError(f"the graph has a cycle through node {stuck.name or stuck.op!r}")
    return [nodes[k] for k in order]


def _names_read(node: gs.Node) -> set[str]:
    names = {t.name for t in node.inputs if t.name}
    for attr in node.attrs.values():
        if isinstance(attr, gs.Graph):
            defined = {t.name for n in attr.nodes for t in n.outputs}
            defined |= {t.name for t in attr.inputs}
            inner = set().union(*(_names_read(n) for n in attr.nodes)) if attr.nodes else set()
            names |= (inner | {t.name for t in attr.outputs}) - defined
    return names


# ----------------------------------------------------------------------- export


def to_proto(graph: Graph, writer: "Any | None" = None) -> onnx.ModelProto:
    """The model as ONNX, with a local function for each op of our own domain that it uses.

    Args:
        writer: takes `(name, array)` and returns a `TensorProto` with external data, or None to
            keep that tensor in the file. Without a writer all tensors stay in the file.
    """
    exported = _Exporter(writer).graph(graph, {})
    functions = function_protos(graph)
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in sorted(graph.opsets.items())]
    if functions and FUNCTION_DOMAIN not in graph.opsets:
        opsets.append(onnx.helper.make_opsetid(FUNCTION_DOMAIN, 1))
    exported.import_domains = opsets
    exported.ir_version = max(8, min(10, onnx.IR_VERSION)) if graph.opset() <= 22 else 11
    model = gs.export_onnx(exported, do_type_check=False)
    model.functions.extend(functions)
    model.producer_name = "graphopt"
    for imported in model.opset_import:
        if imported.domain == FUNCTION_DOMAIN:
            imported.version = 1
    return model


class _Exporter:
    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self.taken: set[str] = set()
        self.labels: set[str] = set()

    def graph(self, graph: Graph, names: dict[Value, gs.Tensor]) -> gs.Graph:
        names = dict(names)
        free = self._free_name if graph.parent is not None else str
        inputs = [self._variable(value, free(value.name), names) for value in graph.inputs]
        output_names = [free(name) for name in graph.output_names]
        self.taken |= set(output_names)
        outputs, copies = self._outputs(graph, output_names, names)
        nodes = [self._node(node, names) for node in graph.nodes]
        for source, target in copies:
            tensor = self._tensor(source, names)
            nodes.append(gs.Node("Identity", inputs=[tensor], outputs=[target]))
        exported = gs.Graph(nodes=nodes, inputs=inputs, outputs=outputs, name=graph.name)
        exported.opset = graph.opset()
        return exported

    def _outputs(
        self, graph: Graph, output_names: list[str], names: dict[Value, gs.Tensor]
    ) -> tuple[list[gs.Tensor], list[tuple[Value, gs.Tensor]]]:
        """Output tensors under the names that the user knows, and the copies these need."""
        outputs, copies = [], []
        for name, value in zip(output_names, graph.outputs):
            own = value.producer is not None and value.producer.graph is graph
            if own and value not in names:
                outputs.append(self._variable(value, name, names))
                continue
            target = gs.Variable(name, *_signature(value))
            copies.append((value, target))
            outputs.append(target)
        return outputs, copies

    def _variable(self, value: Value, name: str, names: dict[Value, gs.Tensor]) -> gs.Tensor:
        tensor = gs.Variable(name, *_signature(value))
        if isinstance(value.type, SequenceType):
            tensor.type = "sequence_type"
        self.taken.add(name)
        names[value] = tensor
        return tensor

    def _free_name(self, stem: str) -> str:
        """A name that nothing in the model has: subgraphs may not hide names around them."""
        name, count = stem, 0
        while not name or name in self.taken:
            count += 1
            name = f"{stem or 'value'}_{count}"
        return name

    def _tensor(self, value: Value, names: dict[Value, gs.Tensor]) -> gs.Tensor:
        if value in names:
            return names[value]
        name = self._free_name(value.name)
        if value.const is None:
            return self._variable(value, name, names)
        proto = self.writer(name, value.const) if self.writer else None
        if proto is None:
            proto = onnx.numpy_helper.from_array(np.ascontiguousarray(value.const).reshape(value.const.shape), name)
        self.taken.add(name)
        names[value] = gs.Constant(name, LazyValues(proto))
        return names[value]

    def _node(self, node: Node, names: dict[Value, gs.Tensor]) -> gs.Node:
        inputs = [
            gs.Variable.empty() if value is None else self._tensor(value, names)
            for value in node.inputs
        ]
        outputs = [self._tensor(value, names) for value in node.outputs]
        attrs: dict[str, Any] = {}
        for name, attr in node.attrs.items():
            if isinstance(attr, Graph):
                attrs[name] = self.graph(attr, names)
            elif isinstance(attr, np.ndarray):
                attrs[name] = gs.Constant(name, LazyValues(onnx.numpy_helper.from_array(attr)))
            else:
                attrs[name] = attr
        op = function_name(node) if node.domain == FUNCTION_DOMAIN else node.op_type
        return gs.Node(
            op, self._label(node), attrs, inputs, outputs, domain=node.domain or None
        )

    def _label(self, node: Node) -> str:
        """A node name that no other node has: several may stand for the same source node."""
        stem = label = "+".join(node.origin[:4])
        count = 0
        while label and label in self.labels:
            count += 1
            label = f"{stem}_{count}"
        self.labels.add(label)
        return label


def _signature(value: Value) -> tuple[Any, Any]:
    type_ = value.type.element if isinstance(value.type, SequenceType) else value.type
    if not isinstance(type_, TensorType) or not type_.dtype:
        return None, None
    shape = None
    if type_.shape is not None:
        shape = [dim if isinstance(dim, int) else str(dim) for dim in type_.shape]
    return dtype_to_onnx(type_.dtype), shape


def save(graph: Graph, path: str | Path, *, inline_limit: int = 1 << 20) -> None:
    """Write a model file; constants over a total of `inline_limit` bytes go to `<path>.data`.

    Both files are written under temporary names and renamed, so that none is ever half written.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full.
    """
    from graphopt.ir.atomic import replacing
    from graphopt.ir.external_data import TensorWriter

    path = Path(path)
    total = sum(value.const.nbytes for value in graph.constants() if value.const is not None)
    if total <= inline_limit:
        with replacing(path) as temporary:
            temporary.write_bytes(to_proto(graph).SerializeToString())
        return
    data = path.with_name(path.name + ".data")
    with replacing(data) as temporary_data:
        with TensorWriter(temporary_data, location=data.name) as writer:
            model = to_proto(graph, writer)
        with replacing(path) as temporary:
            temporary.write_bytes(model.SerializeToString())
