"""Arrays on the GPU as other frameworks have them, by Python's DLPack and by its interface in C."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from graphopt.serving.gpu_runtime import cuda, producers
from graphopt.serving.runtime import ffi


def on_host(given: Any) -> np.ndarray:
    """The contents of an array, wherever it is."""
    if isinstance(given, np.ndarray):
        return given
    assert given.__dlpack_device__() == (2, 0)
    result = np.empty(given.shape, str(given.dtype))
    cuda.copy(result.ctypes.data, given.data_ptr(), result.nbytes, 0)
    cuda.synchronize(0)
    return result


def room_on_gpu(shape: tuple[int, ...], dtype: Any) -> Any:
    """A tensor on the GPU."""
    allocate = ffi().get_global_func("runtime.TVMTensorAllocWithScope")
    return allocate(ffi().Shape(shape), ffi().dtype(str(dtype)), ffi().device("cuda", 0), None)


class OnGpu:
    """An array on the GPU as another framework has it: written by work on a stream of its own."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (2, 0)) -> None:
        self.device, self.asked = device, list[int]()
        self.stream, self._array = cuda.Stream(), array
        self.tensor = room_on_gpu(array.shape, array.dtype)
        cuda.copy(self.tensor.data_ptr(), array.ctypes.data, array.nbytes, self.stream.handle)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int, **_: Any) -> Any:
        assert stream != 0  # means nothing
        self.asked.append(stream)
        written = cuda.Event()
        written.record(self.stream.handle)
        cuda.wait(0 if stream == 1 else stream, written)
        return self.tensor.__dlpack__()


class Framework:
    """One that offers DLPack's interface in C, with a stream of its own; its arrays are `Array`s.

    Attributes:
        given: sizes of the arrays that it was asked for.
    """

    def __init__(self) -> None:
        self.stream, self.given, self._kept = cuda.Stream(), list[tuple[int, ...]](), list[Any]()
        self.room = True
        api = producers._ExchangeApi(
            *(1, 3, None),
            producers._Allocate(self._allocate),
            *(None, None),
            producers._Describe(self._describe),
            producers._CurrentStream(self._current),
        )
        self._kept.append(api)

        class Array:
            __dlpack_c_exchange_api__ = ctypes.addressof(api)

            def __init__(self, array: np.ndarray, skipped: int = 0) -> None:
                self.on_gpu = OnGpu(np.concatenate([np.zeros(skipped, np.uint8), octets(array)]))
                self.on_gpu.stream, self.array, self.skipped = framework.stream, array, skipped

            @property
            def address(self) -> int:
                return int(self.on_gpu.tensor.data_ptr()) + self.skipped

        framework, self.Array = self, Array

    def _current(self, device: int, index: int, found: Any) -> int:
        found[0] = self.stream.handle
        return 0

    def _describe(self, given: Any, tensor: Any) -> int:
        shape = given.array.shape
        sizes = (ctypes.c_int64 * len(shape))(*shape)
        self._kept.append(sizes)
        number = producers._number(given.array.dtype)
        tensor[0] = producers._Tensor(given.address, 2, 0, len(shape), number, sizes, None, 0)
        return 0

    def _allocate(self, wanted: Any, made: Any, context: Any, complain: Any) -> int:
        if not self.room:
            complain(context, b"MemoryError", b"out of memory")
            return -1
        shape = tuple(wanted[0].shape[: wanted[0].ndim])
        dtype = producers._dtype(wanted[0].dtype)
        self.given.append(shape)
        capsule = room_on_gpu(shape, dtype).__dlpack__(max_version=(1, 0))
        take = ctypes.pythonapi.PyCapsule_GetPointer
        take.restype, take.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        made[0] = take(capsule, producers._MANAGED)
        rename = ctypes.pythonapi.PyCapsule_SetName
        rename.restype, rename.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]
        rename(capsule, b"used_dltensor_versioned")
        return 0


def octets(array: np.ndarray) -> np.ndarray:
    """The bytes of an array."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
