"""Types of values: tensors with symbolic shapes, and the sequences that exporters wrap them in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import onnx
from onnx import TensorProto

from graphopt.ir.dims import Dim, Sym, product

_NAMES = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.BOOL: "bool",
    TensorProto.STRING: "string",
    **{getattr(TensorProto, f"INT{bits}"): f"int{bits}" for bits in (8, 16, 32, 64)},
    **{getattr(TensorProto, f"UINT{bits}"): f"uint{bits}" for bits in (8, 16, 32, 64)},
}
_CODES = {name: code for code, name in _NAMES.items()}
_SHORT = {"float": "f", "int": "i", "uint": "u", "bfloat": "bf"}


def dtype_from_onnx(code: int) -> str:
    """The dtype name of a `TensorProto.DataType` code, such as "float32"; "" for undefined."""
    if code == TensorProto.UNDEFINED:
        return ""
    return _NAMES.get(code) or str(TensorProto.DataType.Name(code)).lower()


def dtype_to_onnx(dtype: str) -> int:
    """The `TensorProto.DataType` code of a dtype name."""
    code = _CODES.get(dtype)
    return int(TensorProto.DataType.Value(dtype.upper())) if code is None else code


def dtype_to_numpy(dtype: str) -> np.dtype[Any]:
    """The NumPy dtype (an `ml_dtypes` one for bfloat16, float8 and 4-bit types)."""
    if dtype == "string":
        return np.dtype(object)
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype_to_onnx(dtype)))


def dtype_of(array: np.ndarray) -> str:
    """The dtype name of a NumPy array."""
    if array.dtype.kind in "OSU":
        return "string"
    return dtype_from_onnx(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))


def is_float(dtype: str) -> bool:
    """True for the floating dtypes of any width."""
    return "float" in dtype


def is_integer(dtype: str) -> bool:
    """True for signed and unsigned integers of any width (bool is not one)."""
    return "int" in dtype


class UnknownRankError(Exception):
    """Sizes of a tensor were asked for whose rank is not known."""


@dataclass(frozen=True)
class TensorType:
    """A tensor's dtype and shape; `shape is None` when not even the rank is known."""

    dtype: str
    shape: tuple[Dim, ...] | None = None

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    @property
    def is_static(self) -> bool:
        """True if every dim is a known number."""
        return self.shape is not None and all(isinstance(dim, int) for dim in self.shape)

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The shape.

        Raises:
            UnknownRankError: not even the rank is known; of rules that is a refusal.
        """
        if self.shape is None:
            raise UnknownRankError("the rank is not known")
        return self.shape

    @property
    def elements(self) -> Dim | None:
        """The number of elements, possibly symbolic; None if the rank is unknown."""
        return None if self.shape is None else product(self.shape)

    def __str__(self) -> str:
        if self.shape is None:
            return f"{short_dtype(self.dtype)}[*]"
        return f"{short_dtype(self.dtype)}[{', '.join(str(dim) for dim in self.shape)}]"


@dataclass(frozen=True)
class SequenceType:
    """A sequence of tensors, such as the one a Loop collects bags in."""

    element: TensorType

    def __str__(self) -> str:
        return f"seq({self.element})"


@dataclass(frozen=True)
class OptionalType:
    """A tensor or sequence that may be absent."""

    element: Union[TensorType, SequenceType]

    def __str__(self) -> str:
        return f"optional({self.element})"


Type = Union[TensorType, SequenceType, OptionalType]


def short_dtype(dtype: str) -> str:
    """`f32` for float32, `i64` for int64, and so on."""
    for name in ("bfloat", "uint", "float", "int"):
        rest = dtype.removeprefix(name)
        if rest != dtype and rest.isdigit():
            return _SHORT[name] + rest
    return dtype


def type_to_proto(type_: Type) -> onnx.TypeProto:
    """The ONNX form; symbolic dims become their canonical text."""
    if isinstance(type_, SequenceType):
        return onnx.helper.make_sequence_type_proto(type_to_proto(type_.element))
    if isinstance(type_, OptionalType):
        return onnx.helper.make_optional_type_proto(type_to_proto(type_.element))
    shape = None
    if type_.shape is not None:
        shape = [dim if isinstance(dim, int) else str(dim) for dim in type_.shape]
    return onnx.helper.make_tensor_type_proto(dtype_to_onnx(type_.dtype or "undefined"), shape)


def type_from_proto(proto: onnx.TypeProto, dim: "DimReader") -> Type | None:
    """The type that an ONNX `TypeProto` declares, None if it declares none.

    `dim` maps each `TensorShapeProto.Dimension` to a `Dim`.
    """
    kind = proto.WhichOneof("value")
    if kind == "sequence_type":
        element = type_from_proto(proto.sequence_type.elem_type, dim)
        return SequenceType(element) if isinstance(element, TensorType) else None
    if kind == "optional_type":
        element = type_from_proto(proto.optional_type.elem_type, dim)
        return OptionalType(element) if isinstance(element, (TensorType, SequenceType)) else None
    if kind != "tensor_type":
        return None
    tensor = proto.tensor_type
    shape = tuple(dim(d) for d in tensor.shape.dim) if tensor.HasField("shape") else None
    return TensorType(dtype_from_onnx(tensor.elem_type), shape)


class DimReader:
    """Reads `TensorShapeProto` dims: names become sizes, anonymous ones get a fresh name."""

    def __init__(self, fresh: "FreshDim", known: dict[str, Dim] | None = None) -> None:
        self.fresh, self.known = fresh, known or {}

    def __call__(self, proto: onnx.TensorShapeProto.Dimension) -> Dim:
        if proto.HasField("dim_value") and proto.dim_value >= 0:
            return int(proto.dim_value)
        if proto.dim_param:
            return self.known.get(proto.dim_param) or Sym.named(proto.dim_param)
        return self.fresh()


class FreshDim:
    """Makes sizes that are equal to no other; the names are unique within one graph."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.count = 0

    def __call__(self) -> Sym:
        while True:
            name = f"d{self.count}"
            self.count += 1
            if name not in self.taken:
                return Sym.named(name)
