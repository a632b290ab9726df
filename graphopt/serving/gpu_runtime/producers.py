"""Frameworks whose arrays are read, waited for and made by DLPack's interface in C.

`__dlpack__(stream=…)` makes a capsule for each array and has one stream wait for another, each time
anew, which costs tens of microseconds an array. Frameworks that offer `DLPackExchangeAPI` (DLPack
1.2) fill in a struct instead, and tell their stream, so that one wait does for all arrays of a
call. They also give memory of their own pool, where an allocation of CUDA's would wait for the GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np

from graphopt.serving.gpu_runtime.connection import CUDA
from graphopt.serving.runtime import ffi
from graphopt.serving.signature import TensorSpec

_VERSION = 1  # major version of DLPack
_NAME, _MANAGED = b"dlpack_exchange_api", b"dltensor_versioned"
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # of NumPy's kinds, in DLPack
_BFLOAT16 = 4


class _Tensor(ctypes.Structure):
    """`struct DLTensor` of dlpack.h; the data type as one number."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_SetError = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)
# With Python's lock held: a producer may raise.
_Allocate = ctypes.PYFUNCTYPE(
    ctypes.c_int,
    ctypes.POINTER(_Tensor),
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
    _SetError,
)
_Describe = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(_Tensor))
_CurrentStream = ctypes.PYFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p)
)


class _ExchangeApi(ctypes.Structure):
    """`struct DLPackExchangeAPI` of dlpack.h."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("allocate", _Allocate),
        ("from_object", ctypes.c_void_p),
        ("to_object", ctypes.c_void_p),
        ("describe", _Describe),
        ("current_work_stream", _CurrentStream),
    ]


class Framework:
    """One that offers the interface."""

    def __init__(self, api: _ExchangeApi) -> None:
        self._api = api

    def stream(self) -> int:
        """The stream that it works on now."""
        found = ctypes.c_void_p()
        if self._api.current_work_stream(CUDA, 0, ctypes.byref(found)):
            raise RuntimeError("a framework has no current stream")
        return found.value or 0

    def described(self, given: Any) -> tuple[int, int, int, tuple[int, ...], Any, bool] | None:
        """Device, its number, address, shape, dtype of one of its arrays, and whether contiguous.

        None if it cannot be told; `__dlpack__` says why.
        """
        tensor = _Tensor()
        if not self._api.describe or self._api.describe(given, ctypes.byref(tensor)):
            return None
        dtype = _dtype(tensor.dtype)
        if dtype is None:
            return None
        shape = tuple(tensor.shape[: tensor.ndim])
        strides = tensor.strides[: tensor.ndim] if tensor.strides else None
        contiguous = strides is None or _is_contiguous(shape, strides)
        address = (tensor.data or 0) + tensor.byte_offset
        return tensor.device_type, tensor.device_id, address, shape, dtype, contiguous

    @property
    def allocates(self) -> bool:
        """Whether `allocate` works."""
        return bool(self._api.allocate)

    def allocate(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
        """A tensor in memory of its pool, for what its current stream is given from now on.

        Raises:
            RuntimeError: it has none; says why.
        """
        reasons: list[str] = []

        def note(_: Any, kind: bytes, message: bytes) -> None:
            reasons.append(f"{kind.decode()}: {message.decode()}")

        sizes = (ctypes.c_int64 * len(shape))(*shape)
        wanted = _Tensor(None, CUDA, 0, len(shape), _number(dtype), sizes, None, 0)
        made = ctypes.c_void_p()
        failed = self._api.allocate(ctypes.byref(wanted), ctypes.byref(made), None, _SetError(note))
        if failed or not made.value:
            raise RuntimeError(reasons[0] if reasons else "a framework gave no memory")
        new_capsule = ctypes.pythonapi.PyCapsule_New
        new_capsule.restype = ctypes.py_object
        new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return ffi().from_dlpack(new_capsule(made, _MANAGED, None))


_known: dict[type, Framework | None] = {}


def framework_of(kind: type) -> Framework | None:
    """The framework of arrays of this type; None if it does not offer the interface."""
    if kind not in _known:
        _known[kind] = _asked(kind)
    return _known[kind]


def _asked(kind: type) -> Framework | None:
    given: Any = getattr(kind, "__dlpack_c_exchange_api__", None)
    if given is None:
        return None
    api = _ExchangeApi.from_address(given if isinstance(given, int) else _pointer_in(given))
    return Framework(api) if api.major == _VERSION and api.current_work_stream else None


def _pointer_in(capsule: Any) -> int:
    function = ctypes.pythonapi.PyCapsule_GetPointer
    function.restype, function.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(function(capsule, _NAME))


def _number(dtype: np.dtype[Any]) -> int:
    """`DLDataType` as one number."""
    code = _CODES.get(dtype.kind, _BFLOAT16)
    return code | 8 * dtype.itemsize << 8 | 1 << 16


@cache
def _dtype(number: int) -> np.dtype[Any] | None:
    """The dtype whose `_number` this is."""
    kinds = {code: kind for kind, code in _CODES.items()}
    code, size = number & 0xFF, (number >> 8 & 0xFF) // 8
    if code == _BFLOAT16:
        return TensorSpec("", "bfloat16", None).numpy_dtype
    try:
        dtype = np.dtype(f"{kinds[code]}{size}")
    except (KeyError, TypeError):
        return None
    return dtype if _number(dtype) == number else None


def _is_contiguous(shape: tuple[int, ...], strides: list[int]) -> bool:
    if 0 in shape:
        return True
    return all(
        size == 1 or stride == prod(shape[axis + 1 :])
        for axis, (size, stride) in enumerate(zip(shape, strides))
    )
