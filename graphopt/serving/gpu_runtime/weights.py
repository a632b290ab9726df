"""Weights on the GPU, or, where there is no room, in memory of the host that kernels can read."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.errors import ArtifactError
from graphopt.serving.gpu_runtime import cuda

ALIGNMENT = 256  # bytes; what CUDA gives itself
_DEFAULT_STREAM = 0


@dataclass(frozen=True)
class Weights:
    """Where the weights are.

    Attributes:
        addresses: of each, as kernels see it.
        host: which of them lie in the host's memory.
        device_bytes, host_bytes: how much lies on either side.
    """

    addresses: tuple[int, ...]
    host: tuple[int, ...]
    device_bytes: int
    host_bytes: int
    memory: tuple[cuda.DeviceMemory, cuda.HostMemory] | None = None


def place(arrays: Sequence[np.ndarray], share: float) -> Weights:
    """Copy the weights to where they are to lie.

    The smallest ones go to the GPU, as far as they take no more than `share` of its free memory:
    what is read once a call, such as the matrices of layers, is small, and of a large table a batch
    reads a few rows, which may come over the bus. Host memory is plain pinned memory: managed
    memory would move whole pages for each row.

    Raises:
        ArtifactError: there is not so much memory.
    """
    budget = int(share * cuda.free_bytes())
    offsets: dict[int, int] = {}
    end, host_end = 0, 0
    host: list[int] = []
    for k in sorted(range(len(arrays)), key=lambda k: arrays[k].nbytes):
        size = aligned(arrays[k].nbytes)
        if end + size <= budget:
            offsets[k], end = end, end + size
        else:
            host.append(k)
            offsets[k], host_end = host_end, host_end + size
    memory = _reserved(end, host_end)
    addresses = []
    for k, array in enumerate(arrays):
        contiguous = np.ascontiguousarray(array)
        source = contiguous.ctypes.data
        if k in host:
            ctypes.memmove(memory[1].handle + offsets[k], source, array.nbytes)
            addresses.append(memory[1].device_address + offsets[k])
        else:
            addresses.append(memory[0].handle + offsets[k])
            cuda.copy(addresses[-1], source, array.nbytes, _DEFAULT_STREAM)
            cuda.synchronize(_DEFAULT_STREAM)
    return Weights(tuple(addresses), tuple(sorted(host)), end, host_end, memory)


def _reserved(on_device: int, on_host: int) -> tuple[cuda.DeviceMemory, cuda.HostMemory]:
    try:
        device = cuda.DeviceMemory(on_device)
    except cuda.OutOfMemoryError:
        raise no_room(on_device) from None
    try:
        return device, cuda.HostMemory(on_host)
    except cuda.OutOfMemoryError:
        raise ArtifactError(
            f"{on_host / 1e6:,.1f} MB of weights are to stay in the host's memory, which has no "
            "room for them; use a larger gpu_memory_share, or compress the tables"
        ) from None


def no_room(nbytes: int) -> ArtifactError:
    """The error where weights of `nbytes` bytes do not fit."""
    free = cuda.free_bytes()
    return ArtifactError(
        f"the GPU has no room for {nbytes / 1e6:,.1f} MB of weights ({free / 1e6:,.1f} MB are free)"
        "; use one with more memory, or compress the tables"
    )


def aligned(nbytes: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
