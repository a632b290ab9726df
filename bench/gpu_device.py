"""A GPU as a benchmark sees it: its name, what it was measured to be able to do, arrays on it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from graphopt.serving.gpu_runtime import cuda
from graphopt.serving.gpu_runtime.connection import connect
from graphopt.serving.runtime import ffi

STREAM = 0
"""What PyTorch uses unless it is told otherwise, so all engines are measured on it."""
_WIDTH = 8192  # of the square matrices that are multiplied


def describe() -> dict[str, Any]:
    """Name, compute capability and memory.

    Raises:
        graphopt.GraphoptError: there is no GPU, or no CUDA runtime; says what is missing.
    """
    capability = connect()
    text = ctypes.create_string_buffer(256)
    ctypes.CDLL("libcuda.so.1").cuDeviceGetName(text, len(text), 0)
    return {
        "name": text.value.decode(),
        "capability": capability,
        "free_bytes": cuda.free_bytes(),
    }


def microseconds(call: Callable[[], object], count: int) -> list[float]:
    """Times on the GPU's clock, of calls that give work to `STREAM`; none waits for another."""
    return cuda.times(call, STREAM, count)


def ceilings() -> dict[str, float]:
    """Bytes a second of a copy, and operations a second of products if PyTorch is there."""
    found = {"bytes_per_s": copy_bandwidth()}
    try:
        import torch
    except ImportError:
        return found
    a = torch.randn(_WIDTH, _WIDTH, device="cuda")
    for name, precision in {"fp32": "highest", "tf32": "high"}.items():
        torch.set_float32_matmul_precision(precision)
        times = microseconds(lambda: torch.matmul(a, a), 13)[3:]
        found[f"{name}_flop_per_s"] = 2 * _WIDTH**3 / (median(times) / 1e6)
    return found


def copy_bandwidth(nbytes: int = 1 << 28) -> float:
    """Bytes a second that a copy within the device reads and writes, both counted."""
    source, target = cuda.DeviceMemory(nbytes), cuda.DeviceMemory(nbytes)
    times = microseconds(lambda: cuda.copy(target.handle, source.handle, nbytes, STREAM), 13)[3:]
    return 2 * nbytes / (median(times) / 1e6)


def resident(array: np.ndarray) -> Any:
    """A copy on the GPU that speaks DLPack: PyTorch's, as users have them, if it is there."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.from_numpy(np.asarray(array, order="C")).cuda()
    allocate = ffi().get_global_func("runtime.TVMTensorAllocWithScope")
    shape, dtype = ffi().Shape(array.shape), ffi().dtype(str(array.dtype))
    tensor = allocate(shape, dtype, ffi().device("cuda", 0), None)
    cuda.copy(tensor.data_ptr(), np.ascontiguousarray(array).ctypes.data, array.nbytes, STREAM)
    cuda.synchronize(STREAM)
    return tensor
