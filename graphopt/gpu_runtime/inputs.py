"""What callers give: NumPy arrays and anything that speaks DLPack, on the host or on the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.errors import InputError
from graphopt.gpu_runtime import cuda
from graphopt.gpu_runtime.connection import CUDA
from graphopt.gpu_runtime.producers import current_stream
from graphopt.runtime import ffi
from graphopt.signature import HOST_DEVICES, TensorSpec, on_host

_MANAGED = 13  # DLPack's number
_LEGACY_STREAM = 1  # DLPack's name of the default stream, whose handle is 0


@dataclass(frozen=True)
class DeviceArray:
    """An array on the GPU.

    Attributes:
        owner: keeps it there.
        stream: what was given to this stream so far may write to it; None if that is waited for.
    """

    address: int
    shape: tuple[int, ...]
    dtype: Any
    nbytes: int
    owner: Any
    stream: int | None


def taken(
    spec: TensorSpec, given: Any, stream: int, kind: str = "input"
) -> np.ndarray | DeviceArray:
    """An input where it lies.

    Args:
        stream: will read it.
        kind: what errors are to call it.

    Raises:
        InputError: it is on another device, or is not contiguous there.
    """
    if isinstance(given, np.ndarray) or not hasattr(given, "__dlpack_device__"):
        return on_host(spec, given)
    device, index = given.__dlpack_device__()
    if device in HOST_DEVICES:
        return on_host(spec, given)
    if device not in (CUDA, _MANAGED) or index:
        place = f"GPU {index}" if device == CUDA else f"a device of DLPack type {int(device)}"
        raise InputError(
            f"{kind} {spec.name!r} is on {place}, the model on GPU 0; move it there or to the host"
        )
    current = current_stream(type(given))
    shared = given if current else given.__dlpack__(stream=stream or _LEGACY_STREAM)
    tensor = ffi().from_dlpack(shared)
    if not tensor.is_contiguous():
        raise InputError(f"{kind} {spec.name!r} is not contiguous on the GPU; make it so")
    dtype = TensorSpec(spec.name, str(tensor.dtype), None).numpy_dtype
    nbytes = tensor.numel() * tensor.dtype.itemsize
    producer = current() if current else None
    return DeviceArray(tensor.data_ptr(), tuple(tensor.shape), dtype, nbytes, tensor, producer)


def follow(arrays: Sequence[DeviceArray], stream: int) -> None:
    """Let `stream` wait for the streams that write the arrays."""
    producers = {array.stream for array in arrays if array.stream is not None}
    for producer in producers - {stream}:
        event = cuda.Event()
        event.record(producer)
        cuda.wait(stream, event)
