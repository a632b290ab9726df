"""Tensors on the GPU that speak DLPack, for results that stay there."""

from __future__ import annotations

from functools import cache
from typing import Any

from graphopt.serving.runtime import ffi


def block(nbytes: int) -> Any:
    """Memory for results: a tensor of bytes.

    The memory is CUDA's, not of a pool: it is given back when the last tensor in it goes, which
    waits for whoever still reads it.
    """
    tvm_ffi = ffi()
    shape, dtype = tvm_ffi.Shape([max(nbytes, 1)]), tvm_ffi.dtype("uint8")
    return _function("TVMTensorAllocWithScope")(shape, dtype, tvm_ffi.device("cuda", 0), None)


def view(memory: Any, offset: int, shape: tuple[int, ...], dtype: str) -> Any:
    """A tensor that lies in a block, and keeps it."""
    tvm_ffi = ffi()
    return _function("TVMTensorCreateView")(
        memory, tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype), offset
    )


@cache
def _function(name: str) -> Any:
    return ffi().get_global_func(f"runtime.{name}")
