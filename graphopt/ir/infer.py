"""Types of a node's outputs from its inputs.

Ops that move sizes about have rules of their own here, because they must keep symbolic sizes; all
others ask the ONNX schema. A rule gives `None` for a size that it cannot express: the value then
keeps the size it had, or gets a fresh one that equals no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
from onnx import shape_inference

from graphopt.errors import InvalidModelError, UnsupportedOpError
from graphopt.ir import schema
from graphopt.ir.content import infer_content
from graphopt.ir.dims import Dim, Sym
from graphopt.ir.graph import Graph, Node
from graphopt.ir.types import (
    DimReader,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
    UnknownRankError,
    type_from_proto,
    type_to_proto,
)

Shape = Sequence[Dim | None] | None
TypeRule = Callable[[Node], list[Type | None]]

# What type rules raise when they meet inputs or attributes that no valid model has.
MISFITS = (
    ArithmeticError,
    AssertionError,
    LookupError,
    TypeError,
    UnknownRankError,
    ValueError,
)
_TYPE_RULES: dict[tuple[str, str], TypeRule] = {}


def type_rule(*ops: str, domain: str = "") -> Callable[[TypeRule], TypeRule]:
    """Register the type rule of ops; a rule returns one type per output, None for unknown."""

    def register(rule: TypeRule) -> TypeRule:
        for op in ops:
            assert (domain, op) not in _TYPE_RULES, f"two type rules for {domain}::{op}"
            _TYPE_RULES[(domain, op)] = rule
        return rule

    return register


def has_type_rule(op_type: str, domain: str) -> bool:
    """True if types of this op can be inferred without an ONNX schema."""
    return (domain, op_type) in _TYPE_RULES


def infer_node(node: Node) -> bool:
    """Set the types and contents of a node's outputs; True if any of them changed.

    Raises:
        InvalidModelError: the inputs do not fit the op.
        UnsupportedOpError: the op is unknown.
    """
    rule = _TYPE_RULES.get((node.domain, node.op_type))
    types = rule(node) if rule else None
    if types is None:
        types = _schema_types(node)
    changed = False
    for value, inferred in zip(node.outputs, types):
        refined = _refine(value.type, inferred, node)
        changed |= refined != value.type
        value.type = refined
    if node.outputs:
        value = node.outputs[0]
        before = None if value.content is None else value.content.tolist()
        value.content = infer_content(node)
        changed |= before != (None if value.content is None else value.content.tolist())
    return changed


def tensor_type(dtype: str, shape: Shape) -> TensorType:
    """A type whose unknown sizes (None) are still to be named by `infer_node`."""
    return TensorType(dtype, None if shape is None else tuple(shape))  # type: ignore[arg-type]


def _refine(old: Type, new: Type | None, node: Node) -> Type:
    assert node.graph is not None
    if new is None:
        return old
    if isinstance(new, SequenceType):
        element = old.element if isinstance(old, SequenceType) else TensorType("")
        return SequenceType(_refine(element, new.element, node))  # type: ignore[arg-type]
    if isinstance(new, OptionalType):
        element = old.element if isinstance(old, OptionalType) else TensorType("")  # type: ignore
        return OptionalType(_refine(element, new.element, node))  # type: ignore[arg-type]
    if new.shape is None:
        known = old.shape if isinstance(old, TensorType) else None
        return TensorType(new.dtype, known)
    same_rank = isinstance(old, TensorType) and old.rank == new.rank
    shape = [
        dim if dim is not None else (old.dims[i] if same_rank else node.graph.fresh_dim())
        for i, dim in enumerate(new.shape)
    ]
    return TensorType(new.dtype, tuple(shape))


# ------------------------------------------------ what rules read of a node


def tensor_input(node: Node, index: int) -> TensorType:
    """The type of an input that must be a tensor."""
    value = node.input(index)
    if value is None or not isinstance(value.type, TensorType):
        raise failure(node, f"input {index} must be a tensor")
    return value.type


def content_input(node: Node, index: int) -> list[Dim] | None:
    """The elements of a small integer input as far as they are known, else None."""
    value = node.input(index)
    if value is None or value.content is None:
        return None
    return list(value.content.reshape(-1))


def failure(node: Node, reason: str) -> InvalidModelError:
    """The error that says which node cannot be typed, and why."""
    where = ", ".join(repr(name) for name in node.where[:3])
    return InvalidModelError(f"{node.op} (node {where}): {reason}")


def require_sizes(node: Node, shape: Sequence[Dim | None]) -> None:
    """Raise InvalidModelError if one of the sizes that `node` is told is known to be negative."""
    if any(isinstance(size, int) and size < 0 for size in shape):
        wanted = ", ".join("?" if size is None else str(size) for size in shape)
        raise failure(node, f"cannot make the shape [{wanted}]; sizes must not be negative")


# ------------------------------------------------------------------- ONNX schema


def _schema_types(node: Node) -> list[Type | None]:
    graph = node.graph
    assert graph is not None
    found = schema.find(node.op_type, node.domain, graph.opset(node.domain))
    if found is None:
        version = graph.opsets.get(node.domain, "?")
        raise UnsupportedOpError(
            node.op,
            f"not an op of domain {node.domain or 'ai.onnx'!r} version {version}",
            node.where,
        )
    known: dict[str, Dim] = {}
    input_types: dict[str, onnx.TypeProto] = {}
    input_data: dict[str, onnx.TensorProto] = {}
    names = [f"i{k}" if value is not None else "" for k, value in enumerate(node.inputs)]
    for name, value in zip(names, node.inputs):
        if value is None:
            continue
        input_types[name] = type_to_proto(value.type)
        _collect_sizes(value.type, known)
        if value.const is not None and value.const.size <= 1024:
            input_data[name] = onnx.numpy_helper.from_array(value.const, name)
    outputs = [f"o{k}" for k in range(len(node.outputs))]
    # Names with an underscore are notes that a target makes for its lowering.
    given = [(k, a) for k, a in node.attrs.items() if not k.startswith("_")]
    attrs = {k: a for k, a in given if not isinstance(a, Graph)}
    proto = onnx.helper.make_node(node.op_type, names, outputs, domain=node.domain)
    proto.attribute.extend(make_attribute(name, attr) for name, attr in attrs.items())
    imports = [onnx.helper.make_opsetid(d, v) for d, v in graph.opsets.items()]
    try:
        result = shape_inference.infer_node_outputs(
            found, proto, input_types, input_data, opset_imports=imports, ir_version=10
        )
    except (shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise failure(node, str(error).strip().splitlines()[0]) from None
    read = DimReader(_unknown, known)  # type: ignore[arg-type]
    return [type_from_proto(result[o], read) if o in result else None for o in outputs]


def _unknown() -> None:
    return None


def _collect_sizes(type_: Type, known: dict[str, Dim]) -> None:
    if isinstance(type_, TensorType):
        known.update((str(dim), dim) for dim in type_.shape or () if isinstance(dim, Sym))
    else:
        _collect_sizes(type_.element, known)


def make_attribute(name: str, attr: Any) -> onnx.AttributeProto:
    """The ONNX form of an attribute; arrays become tensors."""
    import numpy as np

    if isinstance(attr, np.ndarray):
        attr = onnx.numpy_helper.from_array(attr, name)
    if isinstance(attr, (list, tuple)) and not attr:
        return onnx.AttributeProto(name=name, type=onnx.AttributeProto.INTS)
    return onnx.helper.make_attribute(name, attr)
