"""Runs a compiled library: TVM's runtime and NumPy, without the compiler.

Only `libtvm_runtime` (3 MB) is loaded, so a serving process starts in a fraction of a second. Where
the compiler is already in the process, its runtime is used.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import ArtifactError, IdError

ID_ERROR = "graphopt: id out of range: "
_CPU, _POOLED_ALLOCATOR = 1, 2


@lru_cache(maxsize=1)
def _ffi() -> Any:
    """tvm_ffi with TVM's runtime loaded.

    Raises:
        ArtifactError: the runtime is not installed.
    """
    import tvm_ffi

    if "tvm" in sys.modules:
        return tvm_ffi
    spec = importlib.util.find_spec("tvm")
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    for folder in folders:
        library = folder / "lib" / "libtvm_runtime.so"
        if library.exists():
            # What `import tvm` does where it finds no compiler.
            tvm_ffi.registry._SKIP_UNKNOWN_OBJECTS = True
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
            _load_sidecar(folder)
            return tvm_ffi
    raise ArtifactError("TVM's runtime is missing; install it with: pip install apache-tvm")


def _load_sidecar(folder: Path) -> None:
    """Sorting and the like live in a second library."""
    extra = folder / "lib" / "libtvm_runtime_extra.so"
    if extra.exists():
        ctypes.CDLL(str(extra), ctypes.RTLD_GLOBAL)


class Program:
    """A compiled library with its weights, callable from any thread.

    A virtual machine keeps state during a call, so each thread has one of its own; weights and code
    are shared.
    """

    def __init__(self, library: Path, weights: Sequence[np.ndarray]) -> None:
        ffi = _ffi()
        try:
            self._module = ffi.load_module(str(library))
            self._load = self._module["vm_load_executable"]
        except Exception as error:
            reason = str(error).strip().splitlines()[-1]
            raise ArtifactError(f"{library}: not a usable compiled library ({reason})") from None
        self._from_dlpack = ffi.from_dlpack
        self._arrays = list(weights)
        self._weights = [ffi.from_dlpack(_as_passed(array)) for array in weights]
        self._local = threading.local()
        self._main()

    def _main(self) -> Any:
        main = getattr(self._local, "main", None)
        if main is None:
            machine = self._load()
            machine["vm_initialization"](_CPU, 0, _POOLED_ALLOCATOR)
            self._local.machine = machine
            main = self._local.main = machine["main"]
        return main

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run on arrays in signature order (dtypes, shapes and alignment as it demands).

        Raises:
            IdError: an id lies outside its table.
        """
        arguments = [self._from_dlpack(_as_passed(array)) for array in inputs]
        try:
            result = self._main()(*arguments, *self._weights)
        except RuntimeError as error:
            _, found, rest = str(error).partition(ID_ERROR)
            if not found:
                raise
            raise IdError(f"an id is out of range: {rest.strip().splitlines()[0]}") from None
        return [np.from_dlpack(tensor) for tensor in result]


def _as_passed(array: np.ndarray) -> np.ndarray:
    """The array as DLPack and compiled code take it.

    bfloat16, which NumPy lacks, crosses the border as uint16. Strides of an array without elements
    are those that the sizes imply, where NumPy takes 0 for 1.
    """
    if array.dtype.kind == "V" and array.itemsize == 2:
        array = array.view(np.uint16)
    if array.size == 0:
        strides = [math.prod(array.shape[k + 1 :]) * array.itemsize for k in range(array.ndim)]
        array = np.lib.stride_tricks.as_strided(array, strides=strides)
    return array
