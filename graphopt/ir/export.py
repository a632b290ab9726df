"""Our graphs as onnx-graphsurgeon's: edges get names."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.types import SequenceType, TensorType, dtype_to_onnx
from graphopt.ops import DOMAIN, function_name

# The tensors of the values of a graph, in front of those of the graphs around it.
Tensors = ChainMap[Value, gs.Tensor]
Writer = Callable[[str, np.ndarray], "onnx.TensorProto | None"]


class _Names:
    """Hands out each name once."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self._counts: dict[str, int] = {}

    def reserve(self, name: str) -> str:
        """`name`, for the caller that knows it is free."""
        self.taken.add(name)
        return name

    def free(self, stem: str) -> str:
        """`stem`, with a number if it is taken."""
        name = stem
        while name in self.taken:
            self._counts[stem] = self._counts.get(stem, 0) + 1
            name = f"{stem}_{self._counts[stem]}"
        return self.reserve(name)


class Exporter:
    """Turns our graphs into graphsurgeon's, edges into names."""

    def __init__(self, writer: Writer | None) -> None:
        self.writer = writer
        self.names, self.labels = _Names(), _Names()

    def graph(self, graph: Graph, outside: Tensors) -> gs.Graph:
        """Export a graph; `outside` holds the tensors of the graphs around it.

        The user knows the main graph's inputs and outputs by name. Other names are only labels, and
        subgraphs may not use one that is taken elsewhere.
        """
        tensors = outside.new_child()
        named = self.names.reserve if graph.parent is None else self.names.free
        inputs = [self._variable(value, named(value.name), tensors) for value in graph.inputs]
        output_names = [named(name) for name in graph.output_names]
        outputs, copies = self._outputs(graph, output_names, tensors)
        nodes = [self._node(node, tensors) for node in graph.nodes]
        for source, target in copies:
            tensor = self._tensor(source, tensors)
            nodes.append(gs.Node("Identity", inputs=[tensor], outputs=[target]))
        exported = gs.Graph(nodes=nodes, inputs=inputs, outputs=outputs, name=graph.name)
        exported.opset = graph.opset()
        return exported

    def _outputs(
        self, graph: Graph, names: list[str], tensors: Tensors
    ) -> tuple[list[gs.Tensor], list[tuple[Value, gs.Tensor]]]:
        """Output tensors called `names`, and the copies these need."""
        outputs, copies = [], []
        for name, value in zip(names, graph.outputs):
            own = value.producer is not None and value.producer.graph is graph
            if own and value not in tensors:
                self._variable(value, name, tensors)
            found = tensors.get(value)
            if found is None or found.name != name:
                found = gs.Variable(name, *_signature(value))
                copies.append((value, found))
            outputs.append(found)
        return outputs, copies

    def _variable(self, value: Value, name: str, tensors: Tensors) -> gs.Tensor:
        tensor = gs.Variable(name, *_signature(value))
        if isinstance(value.type, SequenceType):
            tensor.type = "sequence_type"
        tensors[value] = tensor
        return tensor

    def _tensor(self, value: Value, tensors: Tensors) -> gs.Tensor:
        if value in tensors.maps[0]:
            return tensors.maps[0][value]
        if value in tensors:
            # Named only: of a constant, graphsurgeon would write a copy into each subgraph.
            tensors[value] = gs.Variable(tensors[value].name)
            return tensors[value]
        name = self.names.free(value.name or "value")
        if value.const is None:
            return self._variable(value, name, tensors)
        proto = self.writer(name, value.const) if self.writer else None
        if proto is None:
            contiguous = np.ascontiguousarray(value.const).reshape(value.const.shape)
            proto = onnx.numpy_helper.from_array(contiguous, name)
        tensors[value] = gs.Constant(name, LazyValues(proto))
        return tensors[value]

    def _node(self, node: Node, tensors: Tensors) -> gs.Node:
        inputs = [
            gs.Variable.empty() if value is None else self._tensor(value, tensors)
            for value in node.inputs
        ]
        outputs = [self._tensor(value, tensors) for value in node.outputs]
        attrs: dict[str, Any] = {}
        for name, attr in node.attrs.items():
            if isinstance(attr, Graph):
                attrs[name] = self.graph(attr, tensors)
            elif isinstance(attr, np.ndarray):
                attrs[name] = gs.Constant(name, LazyValues(onnx.numpy_helper.from_array(attr)))
            elif not isinstance(attr, (list, tuple)) or attr:
                attrs[name] = attr  # an empty list has no type, and means what its absence means
        op = function_name(node) if node.domain == DOMAIN else node.op_type
        stem = "+".join(node.origin[:4])
        label = self.labels.free(stem) if stem else ""
        return gs.Node(op, label, attrs, inputs, outputs, domain=node.domain or None)


def _signature(value: Value) -> tuple[Any, Any]:
    type_ = value.type.element if isinstance(value.type, SequenceType) else value.type
    if not isinstance(type_, TensorType) or not type_.dtype:
        return None, None
    shape = None
    if type_.shape is not None:
        shape = [dim if isinstance(dim, int) else str(dim) for dim in type_.shape]
    return dtype_to_onnx(type_.dtype), shape
