"""The one-way text form of a graph, for people and golden tests.

Values are renumbered in order, so exporters' names cannot leak in; inputs and outputs keep theirs.
Default attributes are omitted, small integer constants are printed, other payloads are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from graphopt.ir import schema
from graphopt.ir.graph import Graph, Node, Value

MAX_PRINTED = 8


def to_text(graph: Graph) -> str:
    """The whole graph, one node per line.

    graph opset=18 {
      in    %x : f32[N, 4]
      const %c0 : f32[4, 8]
      %0 : f32[N, 8] = MatMul(%x, %c0)
      out   %y = %0 : f32[N, 8]
    }
    """
    return "\n".join(_Printer().graph(graph, "graph", f" opset={graph.opset()}")) + "\n"


class _Printer:
    def __init__(self) -> None:
        self.names: dict[Value, str] = {}
        self.numbers = 0

    def graph(self, graph: Graph, title: str, suffix: str = "") -> Iterator[str]:
        yield f"{title}{suffix} {{"
        for value in graph.inputs:
            main = graph.parent is None
            self.names[value] = f"%{value.name}" if main else self._number()
            yield f"  in    {self.names[value]} : {value.type}"
        if graph.parent is None:
            yield from self._constants(graph)
        for node in graph.nodes:
            yield from ("  " + line for line in self._node(node))
        for name, value in zip(graph.output_names, graph.outputs):
            label = f"%{name} = " if graph.parent is None else ""
            yield f"  out   {label}{self._operand(value)} : {value.type}"
        yield "}"

    def _constants(self, graph: Graph) -> Iterator[str]:
        count = 0
        for value in graph.constants():
            assert value.const is not None
            if _is_printed(value.const):
                continue
            self.names[value] = f"%c{count}"
            count += 1
            yield f"  const {self.names[value]} : {value.type}"

    def _node(self, node: Node) -> Iterator[str]:
        for value in node.outputs:
            self.names[value] = self._number()
        results = ", ".join(f"{self.names[v]} : {v.type}" for v in node.outputs)
        operands = ", ".join("_" if v is None else self._operand(v) for v in node.inputs)
        attrs = _attrs(node)
        yield f"{results} = {node.op}({operands}){attrs}"
        for name, attr in sorted(node.attrs.items()):
            if isinstance(attr, Graph):
                yield from ("  " + line for line in self.graph(attr, name))

    def _operand(self, value: Value) -> str:
        if value in self.names:
            return self.names[value]
        if value.const is not None and _is_printed(value.const):
            return str(value.const.tolist())
        return f"%<{value.name}>"

    def _number(self) -> str:
        self.numbers += 1
        return f"%{self.numbers - 1}"


def _is_printed(array: np.ndarray) -> bool:
    small = array.size <= MAX_PRINTED and array.dtype.kind in "iub"
    return small or (array.size == 1 and array.dtype.kind == "f")


def _attrs(node: Node) -> str:
    shown = []
    for name, attr in sorted(node.attrs.items()):
        if isinstance(attr, Graph):
            continue
        assert node.graph is not None
        version = node.graph.opset(node.domain)
        if _plain(attr) != schema.attr_default(node.op_type, node.domain, version, name):
            shown.append(f"{name}={_plain(attr)}")
    return f" {{{', '.join(shown)}}}" if shown else ""


def _plain(attr: Any) -> Any:
    if isinstance(attr, np.ndarray):
        return attr.tolist() if attr.size <= MAX_PRINTED else f"<{attr.dtype}{list(attr.shape)}>"
    return attr
