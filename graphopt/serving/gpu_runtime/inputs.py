"""What callers give: NumPy arrays and anything that speaks DLPack, on the host or on the GPU."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from graphopt.errors import InputError
from graphopt.serving.gpu_runtime import cuda
from graphopt.serving.gpu_runtime.connection import CUDA
from graphopt.serving.gpu_runtime.producers import Framework, framework_of
from graphopt.serving.runtime import ffi
from graphopt.serving.signature import HOST_DEVICES, TensorSpec, on_host

_MANAGED = 13  # DLPack's number
_LEGACY_STREAM = 1  # DLPack's name of the default stream, whose handle is 0


class DeviceArray(NamedTuple):
    """An array on the GPU.

    Attributes:
        owner: keeps it there.
        framework: whose current stream may still write to it; None if that is waited for.
    """

    address: int
    shape: tuple[int, ...]
    dtype: Any
    nbytes: int
    owner: Any
    framework: Framework | None


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
    if isinstance(given, np.ndarray):
        return given
    framework = framework_of(type(given))
    described = framework.described(given) if framework else None
    if described is None:
        if not hasattr(given, "__dlpack_device__"):
            return on_host(spec, given)
        device, index = given.__dlpack_device__()
    else:
        device, index, address, shape, dtype, contiguous = described
    if device in HOST_DEVICES:
        return on_host(spec, given)
    if device not in (CUDA, _MANAGED) or index:
        place = f"GPU {index}" if device == CUDA else f"a device of DLPack type {int(device)}"
        raise InputError(
            f"{kind} {spec.name!r} is on {place}, the model on GPU 0; move it there or to the host"
        )
    owner = given
    if described is None:
        shared = given if framework else given.__dlpack__(stream=stream or _LEGACY_STREAM)
        owner = ffi().from_dlpack(shared)
        address, shape, contiguous = owner.data_ptr(), tuple(owner.shape), owner.is_contiguous()
        dtype = _dtype(str(owner.dtype))
    if not contiguous:
        raise InputError(f"{kind} {spec.name!r} is not contiguous on the GPU; make it so")
    return DeviceArray(address, shape, dtype, prod(shape) * dtype.itemsize, owner, framework)


@cache
def _dtype(name: str) -> np.dtype[Any]:
    return TensorSpec("", name, None).numpy_dtype


def follow(arrays: Iterable[DeviceArray], stream: int, event: cuda.Event) -> None:
    """Let `stream` wait for the streams that write the arrays.

    Args:
        event: of the caller's, to be used again for each of them.
    """
    for framework in {array.framework for array in arrays}:
        producer = stream if framework is None else framework.stream()
        if producer != stream:
            event.record(producer)
            cuda.wait(stream, event)
