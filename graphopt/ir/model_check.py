"""What is checked of a model before it is imported: the file is untrusted input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
import onnx.inliner
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto
from onnx.defs import OpSchema

from graphopt.errors import InvalidModelError, UnsupportedOpError
from graphopt.ir import schema
from graphopt.ir.graph import Attr, Graph
from graphopt.ir.upgrade import MIN_OPSET, OpCall

OLDEST_OPSET = 7

_ATTRIBUTE_KINDS = frozenset(
    ["FLOAT", "INT", "STRING", "TENSOR", "GRAPH", "FLOATS", "INTS", "STRINGS"]
)
_DTYPES = frozenset(TensorProto.DataType.values())


def opsets_of(model: ModelProto) -> dict[str, int]:
    """The operator sets that a model uses, the standard one under "".

    Raises:
        InvalidModelError: they are missing, contradict each other, or are too old or too new.
    """
    opsets: dict[str, int] = {}
    for imported in model.opset_import:
        domain = _domain(imported.domain)
        if opsets.setdefault(domain, imported.version) != imported.version:
            raise InvalidModelError(f"it imports two versions of domain {domain or 'ai.onnx'!r}")
    if "" not in opsets:
        if any(_domain(node.domain) == "" for node in model.graph.node):
            raise InvalidModelError("it does not say which opset it uses")
        opsets[""] = MIN_OPSET
    if opsets[""] > schema.newest_opset():
        raise InvalidModelError(
            f"opset {opsets['']} is newer than {schema.newest_opset()}, the newest that the "
            "installed onnx knows; upgrade onnx or export with an older opset"
        )
    if opsets[""] < OLDEST_OPSET:
        raise InvalidModelError(
            f"opset {opsets['']} is older than {OLDEST_OPSET}; "
            "convert it with onnx.version_converter"
        )
    return opsets


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def inline_functions(model: ModelProto, keep: str) -> ModelProto:
    """Replace calls of model-local functions by their bodies, except those of domain `keep`.

    Raises:
        InvalidModelError: a function calls itself, or a call does not fit its function.
    """
    foreign = [(f.domain, f.name) for f in model.functions if f.domain != keep]
    if not foreign:
        return model
    try:
        model = onnx.inliner.inline_selected_functions(model, foreign)
    except (RuntimeError, ValueError) as error:
        raise InvalidModelError(f"its local functions cannot be inlined: {error}") from None
    return model


def check_graph(graph: GraphProto) -> None:
    """Check what a file can get wrong about values and attributes, subgraphs included.

    Raises:
        InvalidModelError: a type, a name or an attribute is malformed.
        UnsupportedOpError: an attribute or an input is of a kind that is not handled.
    """
    tensors = [t.name for t in graph.initializer]
    tensors += [t.values.name for t in graph.sparse_initializer]
    if twice := _repeated(tensors):
        raise InvalidModelError(f"two initializers are called {twice!r}")
    for info in (*graph.input, *graph.output, *graph.value_info):
        for dtype in _dtypes(info.type):
            if dtype not in _DTYPES:
                raise InvalidModelError(f"value {info.name!r} has the unknown dtype {dtype}")
    for info in graph.input:
        kind = info.type.WhichOneof("value")
        if kind in ("optional_type", "map_type", "sparse_tensor_type", "opaque_type"):
            reason = f"inputs of kind {kind.removesuffix('_type')} are not supported; pass a tensor"
            raise UnsupportedOpError("graph input", reason, (info.name,))
    for node in graph.node:
        _check_attributes(node)


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _dtypes(type_: TypeProto) -> Iterator[int]:
    kind = type_.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        yield getattr(type_, kind).elem_type
    elif kind in ("sequence_type", "optional_type"):
        yield from _dtypes(getattr(type_, kind).elem_type)


def _check_attributes(node: NodeProto) -> None:
    where = (node.name,) if node.name else tuple(node.output[:1])
    label = f"{node.op_type} (node {', '.join(map(repr, where))})"
    if twice := _repeated(attribute.name for attribute in node.attribute):
        raise InvalidModelError(f"{label}: attribute {twice!r} is given twice")
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            raise InvalidModelError(
                f"{label}: attribute {attribute.name!r} refers to one of a function, outside of any"
            )
        if attribute.type not in AttributeProto.AttributeType.values() or not attribute.type:
            raise InvalidModelError(f"{label}: attribute {attribute.name!r} has no known kind")
        kind = AttributeProto.AttributeType.Name(attribute.type)
        if kind not in _ATTRIBUTE_KINDS:
            reason = f"attributes of kind {kind} ({attribute.name!r}) are not supported"
            raise UnsupportedOpError(node.op_type, reason, where)
        try:
            for text in (attribute.s, *attribute.strings):
                text.decode()
        except UnicodeDecodeError:
            raise InvalidModelError(
                f"{label}: attribute {attribute.name!r} is not UTF-8 text"
            ) from None
        if kind == "GRAPH":
            check_graph(attribute.g)


# ------------------------------------------------------------------------- calls


def check_call(call: OpCall, found: OpSchema) -> None:
    """Check a call against the schema of its op, in the version that it is written in.

    Raises:
        InvalidModelError: it has too few or too many operands, or an attribute does not fit.
    """
    if found.deprecated:
        raise call.invalid(f"it was removed from ONNX in opset {found.since_version}")
    for operands, least, most, what in (
        (call.inputs, found.min_input, found.max_input, "inputs"),
        (call.outputs, found.min_output, found.max_output, "outputs"),
    ):
        if not least <= len(operands) <= most:
            expected = str(least) if least == most else f"{least} to {most}"
            raise call.invalid(f"it has {len(operands)} {what} instead of {expected}")
    for value, formal in zip(call.inputs, found.inputs):
        if value is None and formal.option == OpSchema.FormalParameterOption.Single:
            raise call.invalid(f"its input {formal.name!r} is missing")
    for name, attr in call.attrs.items():
        if name not in found.attributes:
            raise call.invalid(f"it has no attribute {name!r} in opset {found.since_version}")
        kind = found.attributes[name].type.name
        if not _is_of_kind(attr, kind):
            raise call.invalid(f"attribute {name!r} must be of kind {kind}")
    for name, formal in found.attributes.items():
        if formal.required and name not in call.attrs:
            raise call.invalid(f"its attribute {name!r} is missing")


_PYTHON_TYPES = {"FLOAT": float, "INT": int, "STRING": str, "TENSOR": np.ndarray, "GRAPH": Graph}


def _is_of_kind(attr: Attr, kind: str) -> bool:
    if kind in _PYTHON_TYPES:
        return isinstance(attr, _PYTHON_TYPES[kind])
    element = _PYTHON_TYPES.get(kind.removesuffix("S"))
    return isinstance(attr, list) and all(isinstance(x, element or object) for x in attr)
