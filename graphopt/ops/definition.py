"""What the modules of ops have in common: how a node's inputs are read, and its local function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx.parser

from graphopt.ir.graph import Attr, Node
from graphopt.ir.infer import failure
from graphopt.ir.types import TensorType


def tensor_inputs(node: Node, *names: str, more: bool = False) -> list[TensorType]:
    """The types of the inputs of `node`, which are called `names`; of the first ones if `more`.

    Raises:
        InvalidModelError: there are others than these, or one is no tensor.
    """
    types = [None if value is None else value.type for value in node.inputs[: len(names)]]
    tensors = [type_ for type_ in types if isinstance(type_, TensorType)]
    if len(tensors) < len(names) or not (more or len(node.inputs) == len(names)):
        raise failure(node, f"its inputs must be tensors: {', '.join(names)}")
    return tensors


def local_function(
    node: Node,
    name: str,
    signature: str,
    body: str,
    attributes: Sequence[str] = (),
    defaults: Mapping[str, Attr] | None = None,
) -> onnx.FunctionProto:
    """The function `name` of our domain, which `node` calls, in ONNX's text form.

    Args:
        signature: such as `(x, w) => (y)`.
        attributes: those without defaults that callers may pass.
        defaults: the others. All that callers pass has to be declared, also what `body` has no use
            for as it was written for `node`; the text form has no syntax for that.
    """
    assert node.graph is not None
    proto = onnx.parser.parse_function(
        f'<domain: "{node.domain}", opset_import: ["": {node.graph.opset()}]>\n'
        f"{name} {signature} {{\n{body}\n}}"
    )
    proto.attribute.extend(attributes)
    made = (onnx.helper.make_attribute(*item) for item in (defaults or {}).items())
    proto.attribute_proto.extend(made)
    return proto
