"""The streams that other frameworks work on, by DLPack's interface in C.

`__dlpack__(stream=…)` has the producer let one stream wait for another, for each array anew, which
costs PyTorch tens of microseconds. Frameworks that offer `DLPackExchangeAPI` (DLPack 1.2) tell
their stream instead, so that one wait does for all arrays of a call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from graphopt.gpu_runtime.connection import CUDA

_VERSION = 1  # major version of DLPack
_NAME = b"dlpack_exchange_api"
# With Python's lock held: a producer may raise.
_CurrentStream = ctypes.PYFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p)
)


class _ExchangeApi(ctypes.Structure):
    """`struct DLPackExchangeAPI` of dlpack.h."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("previous", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("from_object", ctypes.c_void_p),
        ("to_object", ctypes.c_void_p),
        ("tensor_from_object", ctypes.c_void_p),
        ("current_work_stream", _CurrentStream),
    ]


_known: dict[type, Callable[[], int] | None] = {}


def current_stream(kind: type) -> Callable[[], int] | None:
    """A function that tells which stream the framework of arrays of this type works on.

    None if the framework does not tell; then `__dlpack__` has to be asked to wait.
    """
    if kind not in _known:
        _known[kind] = _asked(kind)
    return _known[kind]


def _asked(kind: type) -> Callable[[], int] | None:
    given: Any = getattr(kind, "__dlpack_c_exchange_api__", None)
    if given is None:
        return None
    pointer = given if isinstance(given, int) else _pointer_in(given)
    api = _ExchangeApi.from_address(pointer)
    if api.major != _VERSION or not api.current_work_stream:
        return None

    def current() -> int:
        stream = ctypes.c_void_p()
        if api.current_work_stream(CUDA, 0, ctypes.byref(stream)):
            raise RuntimeError(f"{kind.__name__} has no current stream")
        return stream.value or 0

    return current


def _pointer_in(capsule: Any) -> int:
    function = ctypes.pythonapi.PyCapsule_GetPointer
    function.restype, function.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return int(function(capsule, _NAME))
