"""What is checked of a model before it is imported: the file is untrusted input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
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
_ALONG_AN_AXIS = frozenset(["Gather", "GatherElements", "ScatterElements"])  # unchecked by onnx
_DTYPES = frozenset(TensorProto.DataType.values())


def opsets_of(model: ModelProto) -> dict[str, int]:
    """The operator sets that a model uses, the standard one under "".

    Raises:
        InvalidModelError: they are missing, contradict each other, or are too old or too new.
    """
    opsets: dict[str, int] = {}
    check_texts(imported.domain for imported in model.opset_import)
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
        if not _is_unchanged(model.graph, opsets[""]):
            raise InvalidModelError(
                f"opset {opsets['']} is older than {OLDEST_OPSET}; "
                "convert it with onnx.version_converter"
            )
        opsets[""] = OLDEST_OPSET
    return opsets


def _is_unchanged(graph: GraphProto, opset: int) -> bool:
    """True if `opset` and the oldest one that is read have the same versions of the ops used."""
    for node in graph.node:
        check_texts((node.op_type, node.domain))
        if _domain(node.domain) == "":
            found = [schema.find(node.op_type, "", v) for v in (opset, OLDEST_OPSET)]
            if len({each.since_version if each else 0 for each in found}) > 1:
                return False
        if not all(_is_unchanged(attribute.g, opset) for attribute in node.attribute):
            return False
    return True


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def check_graph(graph: GraphProto, outside: frozenset[str] = frozenset()) -> None:
    """Check what a file can get wrong about names, values and attributes, subgraphs included.

    Args:
        outside: the names that the graphs around this one define.

    Raises:
        InvalidModelError: a type, a name or an attribute is malformed.
        UnsupportedOpError: an attribute or an input is of a kind that is not handled.
    """
    sparse = [part for t in graph.sparse_initializer for part in (t.values, t.indices)]
    constants = [t.name for t in (*graph.initializer, *sparse[::2])]
    values = (*graph.input, *graph.output, *graph.value_info)
    computed = [name for node in graph.node for name in node.output]
    names = [*constants, *computed, *(info.name for info in values), graph.name]
    check_texts(names)
    if twice := _repeated(constants):
        raise InvalidModelError(f"two initializers are called {twice!r}")
    if hiding := next((name for name in constants if name in outside), None):
        raise InvalidModelError(f"initializer {hiding!r} of a subgraph hides a value around it")
    for tensor in (*graph.initializer, *sparse):
        _check_tensor(tensor)
    for info in values:
        _check_type(info.name, info.type)
    for node in graph.node:
        if node.op_type == "ZipMap":
            reason = "maps are not supported; export without it (zipmap=False) to get the tensor"
            raise UnsupportedOpError(node.op_type, reason, (node.name or node.output[0],))
    for info in graph.input:
        kind = info.type.WhichOneof("value")
        if kind not in (None, "tensor_type", "sequence_type"):
            reason = f"inputs of kind {kind.removesuffix('_type')} are not supported; pass a tensor"
            raise UnsupportedOpError("graph input", reason, (info.name,))
    defined = outside.union(names)
    for node in graph.node:
        check_texts((node.op_type, node.domain, node.name, *node.input))
        if not (node.op_type and (node.op_type + node.domain).isprintable()):
            raise InvalidModelError(f"{node.op_type!r} is not the name of an op")
        _check_attributes(node, defined)


def check_texts(texts: Iterable[str | bytes]) -> None:
    """Names must be UTF-8; protobuf hands over what is not as bytes."""
    for text in texts:
        if isinstance(text, bytes):
            raise InvalidModelError(f"the name {text!r} is not UTF-8 text")


def _check_tensor(tensor: TensorProto) -> None:
    check_texts([tensor.name])
    if tensor.data_type not in _DTYPES or not tensor.data_type:
        raise InvalidModelError(f"tensor {tensor.name!r} is damaged: dtype {tensor.data_type}")
    if min(tensor.dims, default=0) < 0:
        raise InvalidModelError(f"tensor {tensor.name!r} is damaged: shape {list(tensor.dims)}")


def _check_type(name: str, type_: TypeProto) -> None:
    for tensor in _tensor_types(type_):
        if tensor.elem_type not in _DTYPES:
            raise InvalidModelError(f"value {name!r} has the unknown dtype {tensor.elem_type}")
        check_texts(dim.dim_param for dim in tensor.shape.dim)


def _tensor_types(type_: TypeProto) -> Iterator[TypeProto.Tensor | TypeProto.SparseTensor]:
    kind = type_.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        yield getattr(type_, kind)
    elif kind in ("sequence_type", "optional_type"):
        yield from _tensor_types(getattr(type_, kind).elem_type)


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _check_attributes(node: NodeProto, outside: frozenset[str]) -> None:
    where = (node.name,) if node.name else tuple(node.output[:1])
    label = f"{node.op_type} (node {', '.join(map(repr, where))})"
    if twice := _repeated(attribute.name for attribute in node.attribute):
        raise InvalidModelError(f"{label}: attribute {twice!r} is given twice")
    check_texts(attribute.name for attribute in node.attribute)
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
            check_graph(attribute.g, outside)
        elif kind == "TENSOR":
            _check_tensor(attribute.t)


# ------------------------------------------------------------------------- calls


def drop_omitted(call: OpCall, found: OpSchema) -> None:
    """Take away operands at the end that the file lists without a name."""
    optional = OpSchema.FormalParameterOption.Optional
    while len(call.inputs) > found.min_input and call.inputs[-1] is None:
        call.inputs.pop()
    formals = found.outputs[: len(call.outputs)]
    while len(formals) == len(call.outputs) > 1 and not call.outputs[-1]:
        if formals.pop().option != optional:
            break
        call.outputs.pop()


def check_call(call: OpCall, found: OpSchema, version: int) -> None:
    """Check a call against the schema of its op, in the opset version that it is written in.

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
            raise call.invalid(f"it has no attribute {name!r} in opset {version}")
        kind = found.attributes[name].type.name
        if not _is_of_kind(attr, kind):
            raise call.invalid(f"attribute {name!r} must be of kind {kind}")
    for name, formal in found.attributes.items():
        if formal.required and name not in call.attrs:
            raise call.invalid(f"its attribute {name!r} is missing")
    data = call.inputs[0] if call.inputs else None
    if call.op_type in _ALONG_AN_AXIS and not call.domain and data is not None and data.shape:
        axis, rank = call.attrs.get("axis", 0), len(data.shape)
        if not -rank <= axis < rank:
            raise call.invalid(f"axis {axis} is out of range for rank {rank}")


def check_bodies(call: OpCall) -> None:
    """Check that the subgraphs of If, Loop and Scan take and give as many values as their node.

    Raises:
        InvalidModelError: they do not.
        UnsupportedOpError: another op has a subgraph.
    """
    bodies = {name: attr for name, attr in call.attrs.items() if isinstance(attr, Graph)}
    if bodies and call.op_type not in ("If", "Loop", "Scan"):
        raise call.unsupported("only If, Loop and Scan may have subgraphs")
    for name, body in bodies.items():
        takes, gives = len(call.inputs), len(call.outputs)
        if call.op_type == "If":
            takes = 0
        elif call.op_type == "Loop":
            takes, gives = max(takes, 2), gives + 1
        if (len(body.inputs), len(body.outputs)) != (takes, gives):
            raise call.invalid(
                f"its {name} has {len(body.inputs)} inputs and {len(body.outputs)} outputs "
                f"instead of {takes} and {gives}"
            )


_PYTHON_TYPES = {"FLOAT": float, "INT": int, "STRING": str, "TENSOR": np.ndarray, "GRAPH": Graph}


def _is_of_kind(attr: Attr, kind: str) -> bool:
    if kind in _PYTHON_TYPES:
        return isinstance(attr, _PYTHON_TYPES[kind])
    element = _PYTHON_TYPES.get(kind.removesuffix("S"))
    return isinstance(attr, list) and all(isinstance(x, element or object) for x in attr)
