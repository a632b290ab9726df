"""ONNX files in and out, through onnx-graphsurgeon.

Weights stay where they are: external data is memory-mapped, in-file data is viewed in place. What
is read is checked first, because a model is untrusted input.
"""

from __future__ import annotations

import graphlib
import logging
from collections import ChainMap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx_graphsurgeon.ir.tensor import SparseValues

from graphopt.errors import GraphoptError, InvalidModelError, UnsupportedOpError
from graphopt.ir import contrib, ml, schema
from graphopt.ir.atomic import replacing
from graphopt.ir.control import body_input_type, widen_carried
from graphopt.ir.declared_sizes import own_sizes
from graphopt.ir.dims import Sym
from graphopt.ir.export import Exporter, Writer
from graphopt.ir.external_data import TensorReader, TensorWriter
from graphopt.ir.graph import Graph, Value
from graphopt.ir.infer import MISFITS, has_type_rule
from graphopt.ir.local_functions import domain_and_opset, inline_functions
from graphopt.ir.maps import without_maps
from graphopt.ir.model_check import (
    check_bodies,
    check_call,
    check_graph,
    drop_omitted,
    opsets_of,
)
from graphopt.ir.sizes import unify_sizes
from graphopt.ir.types import (
    SequenceType,
    TensorType,
    Type,
    dtype_from_onnx,
    type_to_proto,
)
from graphopt.ir.upgrade import MIN_OPSET, OpCall, check_form, upgrade
from graphopt.ops import DOMAIN as FUNCTION_DOMAIN
from graphopt.ops import function_protos, op_type

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
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except FileNotFoundError:
        raise InvalidModelError(f"{path}: no such file") from None
    except OSError as error:
        raise InvalidModelError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InvalidModelError(f"{str(path)!r}: cannot be read ({error})") from None
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
    if not model.graph.output:
        raise InvalidModelError("its graph has no outputs, so there is nothing to compute")
    opsets = opsets_of(model)
    model, newest = inline_functions(model, FUNCTION_DOMAIN, opsets)
    model, maps = without_maps(model)
    check_graph(model.graph)
    source = gs.import_onnx(model)
    graph = Graph(source.name or "graph", {**opsets, "": max(newest, MIN_OPSET)})
    graph.metadata = {
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "opset": str(opsets[""]),
    }
    if maps:
        graph.metadata["tensors_of_maps"] = ", ".join(map(repr, maps))
    # What we wrote says of two sizes that they are equal only where they are.
    importer = _Importer(TensorReader(folder), opsets[""], model.producer_name == "graphopt")
    importer.fill(graph, source, {})
    if importer.of_no_engine:
        graph.metadata["of_no_engine"] = ", ".join(sorted(importer.of_no_engine))
    unify_sizes(graph)
    return graph


class _Importer:
    """Turns graphsurgeon graphs into ours, names into edges."""

    def __init__(self, tensors: TensorReader, opset: int, trust_sizes: bool) -> None:
        self.tensors, self.opset, self.trust_sizes = tensors, opset, trust_sizes
        self.of_no_engine: set[str] = set()
        self.constants: dict[int, Value] = {}
        self.sizes: dict[str, str] = {}

    def fill(self, graph: Graph, source: gs.Graph, scope: dict[str, Value]) -> None:
        """Append the inputs, nodes and outputs of `source`.

        `scope` maps the names of the enclosing graphs' values, and of inputs already made. Names of
        `source` may hide them.
        """
        scope, own = dict(scope), set()
        for tensor in source.inputs:
            if tensor.name in own or not tensor.name:
                raise InvalidModelError(f"two inputs are called {tensor.name!r}")
            own.add(tensor.name)
            if graph.parent is None:
                scope[tensor.name] = self._input(graph, tensor)
        self._nodes(graph, source, scope, own)
        outputs = [self.value(tensor, graph, scope, "the graph") for tensor in source.outputs]
        names = [tensor.name for tensor in source.outputs]
        if graph.parent is None and len(set(names)) < len(names):
            raise InvalidModelError("two outputs have the same name")
        for value, tensor in zip(outputs, source.outputs):
            _adopt_rank(value, tensor, graph)
        graph.set_outputs(outputs, names)

    def _input(self, graph: Graph, tensor: gs.Tensor) -> Value:
        type_ = self.type_of(tensor, graph)
        if isinstance(type_, TensorType) and not type_.dtype:
            raise InvalidModelError(f"input {tensor.name!r} declares no dtype")
        if not self.trust_sizes:
            type_ = own_sizes(type_, tensor.name, self.sizes)
        return graph.add_input(tensor.name, type_)

    def _nodes(
        self, graph: Graph, source: gs.Graph, scope: dict[str, Value], own: set[str]
    ) -> None:
        for node in _in_order(source.nodes):
            for tensor in node.outputs:
                if tensor.name in own or isinstance(tensor, gs.Constant):
                    raise InvalidModelError(f"value {tensor.name!r} is computed twice")
                own |= {tensor.name} - {""}
            inputs = [
                self.value(t, graph, scope, f"node {_label(node)!r}") if t.name else None
                for t in node.inputs
            ]
            values = self._convert(node, inputs, graph, scope)
            scope.update((t.name, v) for t, v in zip(node.outputs, values) if t.name)

    def _convert(
        self, node: gs.Node, inputs: list[Value | None], graph: Graph, scope: dict[str, Value]
    ) -> Sequence[Value]:
        call, opset = self._call(node, inputs)
        version = opset if not call.domain else graph.opset(call.domain)
        found = schema.find(call.op_type, call.domain, version)
        known = contrib.is_known(call)
        if found is None and not known and not has_type_rule(call.op_type, call.domain):
            name = f"{call.domain}::{call.op_type}" if call.domain else call.op_type
            where = f"{call.domain or 'ai.onnx'} opset {version}"
            if call.domain.startswith(contrib.DOMAIN):
                where = f"what is read of ONNX Runtime's own ops ({call.domain}); give the model "
                where += "as it was before ONNX Runtime's optimizations"
            elif call.domain and call.domain not in graph.opsets:
                where = f"domain {call.domain!r}, which the model does not import"
            raise UnsupportedOpError(name, f"no such op in {where}", call.origin)
        if found is not None:
            drop_omitted(call, found)
        if not known:
            call.outputs = [name or graph.fresh_name(call.op_type) for name in call.outputs]
        check_form(call, opset)
        try:
            call.attrs = self._attributes(node, call, graph, scope)
            if known:
                if call.op_type in contrib.OF_NO_ENGINE:
                    self.of_no_engine.add(call.op_type)
                return contrib.standard(graph, call)
            if found is not None:
                check_call(call, found, version)
                check_bodies(call)
            if call.op_type == "Constant" and not call.domain:
                return [self._constant(call, graph)]
            if (plain := ml.standard(graph, call)) is not None:
                return plain
            values = upgrade(graph, call, opset)
        except MISFITS as error:
            reason = " ".join(str(error).split())
            raise call.invalid(f"its inputs or attributes do not fit it ({reason})") from error
        for body in call.attrs.values():
            if isinstance(body, Graph) and body.owner is not None:
                widen_carried(body.owner, body)
        return values

    def _call(self, node: gs.Node, inputs: list[Value | None]) -> tuple[OpCall, int]:
        """What a node calls, and the opset that it is written in if that is a standard op."""
        domain, opset = domain_and_opset(node.domain, self.opset)
        op = op_type(node.op) if domain == FUNCTION_DOMAIN else node.op
        names = [t.name for t in node.outputs]
        return OpCall(op, domain, inputs, {}, names, (_label(node),)), opset

    def _attributes(
        self, node: gs.Node, call: OpCall, graph: Graph, scope: dict[str, Value]
    ) -> dict[str, Any]:
        attrs = dict(node.attrs)
        for name, attr in node.attrs.items():
            if isinstance(attr, gs.Constant):
                attrs[name] = self.tensors.read(attr._values.tensor)
            elif isinstance(attr, gs.Graph):
                call.attrs = attrs  # the body of a Scan looks at its axes
                attrs[name] = self._subgraph(call, attr, graph, scope)
        return attrs

    def _constant(self, call: OpCall, graph: Graph) -> Value:
        if len(call.attrs) != 1:
            raise call.invalid("it must have exactly one value")
        ((name, attr),) = call.attrs.items()
        dtypes = {"value_int": np.int64, "value_float": np.float32, "value_string": object}
        array = attr if name == "value" else np.array(attr, dtypes[name.removesuffix("s")])
        return graph.constant(array, call.outputs[0])

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
        """The value called `tensor.name`; constants are read on first use, and once."""
        if isinstance(tensor, gs.Constant):
            if id(tensor) not in self.constants:
                self.constants[id(tensor)] = graph.constant(self._read(tensor), tensor.name)
            return self.constants[id(tensor)]
        if tensor.name not in scope:
            raise InvalidModelError(f"{user} reads {tensor.name!r}, which nothing computes")
        return scope[tensor.name]

    def _read(self, tensor: gs.Constant) -> np.ndarray:
        values = tensor._values
        if isinstance(values, SparseValues):
            return self.tensors.read_sparse(values.tensor)
        return self.tensors.read(values.tensor)

    def type_of(self, tensor: gs.Tensor, graph: Graph) -> Type:
        """The declared type of a graph input."""
        known = tensor.type is not None and tensor.dtype is not None
        dtype = dtype_from_onnx(_onnx_code(tensor.dtype)) if known else ""
        if tensor.shape is None:
            type_ = TensorType(dtype)
        else:
            type_ = TensorType(dtype, tuple(_dim(dim, graph) for dim in tensor.shape))
        return SequenceType(type_) if tensor.type == "sequence_type" else type_


def _adopt_rank(value: Value, declared: gs.Tensor, graph: Graph) -> None:
    """Believe the file about the rank of an output where inference finds none."""
    if isinstance(value.type, TensorType) and value.shape is None and declared.shape is not None:
        shape = tuple(_dim(dim, graph) for dim in declared.shape)
        value.type = TensorType(value.dtype, shape)


def _label(node: gs.Node) -> str:
    """What to call a node in front of the user."""
    return node.name or next((tensor.name for tensor in node.outputs if tensor.name), node.op)


def _onnx_code(dtype: Any) -> int:
    if isinstance(dtype, int):
        return dtype
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _dim(dim: Any, graph: Graph) -> Any:
    if isinstance(dim, int) and dim >= 0:
        return dim
    return Sym.named(dim) if isinstance(dim, str) and dim else graph.fresh_dim()


def _in_order(nodes: Sequence[gs.Node]) -> list[gs.Node]:
    """The nodes, each after those that it reads from.

    Raises:
        InvalidModelError: nodes depend on each other in a circle.
    """
    producer = {t.name: k for k, n in enumerate(nodes) for t in n.outputs if t.name}
    needs = [{producer[n] for n in _names_read(node) if n in producer} for node in nodes]
    if all(max(needed, default=-1) < k for k, needed in enumerate(needs)):
        return list(nodes)
    sorter = graphlib.TopologicalSorter(dict.fromkeys(range(len(nodes)), ()))
    for k, needed in enumerate(needs):
        sorter.add(k, *needed)
    try:
        return [nodes[k] for k in sorter.static_order()]
    except graphlib.CycleError as error:
        stuck = nodes[error.args[1][0]]
        raise InvalidModelError(f"the graph has a cycle through node {_label(stuck)!r}") from None


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


def to_proto(graph: Graph, writer: Writer | None = None) -> onnx.ModelProto:
    """The model as ONNX, with a local function for each op of our own domain that it uses.

    Args:
        writer: takes `(name, array)` and returns a `TensorProto` with external data, or None to
            keep that tensor in the file. Without a writer all tensors stay in the file.
    """
    exported = Exporter(writer).graph(graph, ChainMap())
    functions = function_protos(graph)
    opsets = [onnx.helper.make_opsetid(d, v) for d, v in sorted(graph.opsets.items())]
    if functions and FUNCTION_DOMAIN not in graph.opsets:
        opsets.append(onnx.helper.make_opsetid(FUNCTION_DOMAIN, 1))
    exported.import_domains = opsets
    exported.ir_version = max(8, min(10, onnx.IR_VERSION)) if graph.opset() <= 22 else 11
    model = gs.export_onnx(exported, do_type_check=False)
    for info, value in zip(model.graph.output, graph.outputs):
        info.type.CopyFrom(type_to_proto(value.type))
    model.functions.extend(functions)
    model.producer_name = "graphopt"
    for imported in model.opset_import:
        if imported.domain == FUNCTION_DOMAIN:
            imported.version = 1
    return model


def save(graph: Graph, path: str | Path, *, inline_limit: int = 1 << 20) -> None:
    """Write a model file; constants over a total of `inline_limit` bytes go to `<path>.data`.

    Both files are written under temporary names and renamed, so that none is ever half written. A
    model there goes before its data does: whatever happens, none is left that reads other data.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    total = sum(value.const.nbytes for value in graph.constants() if value.const is not None)
    if total <= inline_limit:
        with replacing(path) as temporary:
            temporary.write_bytes(to_proto(graph).SerializeToString())
        return
    data = path.with_name(path.name + ".data")
    with replacing(path) as temporary, replacing(data) as temporary_data:  # renamed first
        with TensorWriter(temporary_data, location=data.name) as writer:
            model = to_proto(graph, writer)
        temporary.write_bytes(model.SerializeToString())
        if data.exists():
            path.unlink(missing_ok=True)
