"""Tensors on the GPU that speak DLPack, for results that stay there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphopt.gpu_runtime import cuda
from graphopt.gpu_runtime.weights import aligned
from graphopt.runtime import ffi

Source = tuple[int, tuple[int, ...], str, int]
"""Address, shape, dtype and bytes of a contiguous array on the GPU."""


def copies(sources: Sequence[Source], stream: int) -> list[Any]:
    """Copies in memory of their own, made in the order of `stream`.

    The memory is CUDA's, not of a pool: it is given back when the last tensor goes, which waits for
    whoever still reads it.
    """
    tvm_ffi = ffi()
    allocate = tvm_ffi.get_global_func("runtime.TVMTensorAllocWithScope")
    view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
    total = sum(aligned(nbytes) for *_, nbytes in sources)
    device = tvm_ffi.device("cuda", 0)
    block = allocate(tvm_ffi.Shape([max(total, 1)]), tvm_ffi.dtype("uint8"), device, None)
    results, offset = [], 0
    for address, shape, dtype, nbytes in sources:
        results.append(view(block, tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype), offset))
        if nbytes:
            cuda.copy(block.data_ptr() + offset, address, nbytes, stream)
        offset += aligned(nbytes)
    return results
