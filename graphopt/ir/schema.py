"""Facts about ops, from the ONNX schemas: defaults, arity, function bodies, determinism."""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx
from onnx.defs import OpSchema

COMMUTATIVE = frozenset(
    ["Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor"]
)
NONDETERMINISTIC = frozenset(
    ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial"]
    + ["Bernoulli"]
)


@cache
def find(op_type: str, domain: str, version: int) -> OpSchema | None:
    """The schema of an op in a version of its domain, None if it has none there."""
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


@cache
def attr_default(op_type: str, domain: str, version: int, name: str) -> Any:
    """The default of an attribute, None if it has none."""
    schema = find(op_type, domain, version)
    if schema is None or name not in schema.attributes:
        return None
    default = schema.attributes[name].default_value
    if default.type == onnx.AttributeProto.UNDEFINED:
        return None
    value = onnx.helper.get_attribute_value(default)
    return value.decode() if isinstance(value, bytes) else value


@cache
def defaults(op_type: str, domain: str, version: int) -> dict[str, Any]:
    """The defaults of all attributes of an op that have one."""
    schema = find(op_type, domain, version)
    names = schema.attributes if schema is not None else ()
    found = {name: attr_default(op_type, domain, version, name) for name in names}
    return {name: default for name, default in found.items() if default is not None}


def is_deterministic(op_type: str, domain: str) -> bool:
    """False for ops that draw random numbers."""
    return not (domain == "" and op_type in NONDETERMINISTIC)


def newest_opset() -> int:
    """The newest version of the standard domain that the installed onnx knows."""
    return int(onnx.defs.onnx_opset_version())
