"""Runs a library compiled for NVIDIA GPUs: NumPy arrays in and out, weights on the device."""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import ArtifactError, IdError, InputError
from graphopt.runtime import ID_ERROR, Inputs, ffi, passed, runtime_folder

_CPU, _CUDA = 1, 2
_ALLOCATOR = 2  # pooled
_EXISTS, _COMPUTE_VERSION = 0, 4  # attributes of a device


def obstacle(architectures: Sequence[str]) -> str | None:
    """Why this machine cannot run code for these architectures; None if it can."""
    try:
        version = _connect()
    except ArtifactError as error:
        return f"compiled for a GPU; {error}"
    # The code holds PTX of the oldest architecture, which serves all that are newer.
    oldest, present = min(map(_number, architectures)), int(version.replace(".", ""))
    if present >= oldest:
        return None
    names = ", ".join(architectures)
    return (
        f"it needs a GPU of {names} or newer, this one is sm_{present}; "
        "compile it again with --target cuda"
    )


def _number(architecture: str) -> int:
    return int(architecture.strip("sm_a"))


def _connect() -> str:
    """Load TVM's CUDA runtime; the compute version of the GPU, such as "9.0".

    Raises:
        ArtifactError: says what is missing.
    """
    _load("libcuda.so.1", [], "this machine has no NVIDIA driver (libcuda.so.1)")
    package = importlib.util.find_spec("nvidia")
    places = list(package.submodule_search_locations or []) if package else []
    found = [path for place in places for path in Path(place).glob("cu*/lib/libcudart.so.13")]
    hint = "CUDA's runtime is missing; install it with: pip install nvidia-cuda-runtime"
    _load("libcudart.so.13", found, hint)
    attribute = ffi().get_global_func("runtime.GetDeviceAttr")
    library = runtime_folder() / "libtvm_runtime_cuda.so"
    _load(str(library), [], "TVM's CUDA runtime cannot be loaded")
    if not attribute(_CUDA, 0, _EXISTS):
        raise ArtifactError("this machine has an NVIDIA driver, but no GPU that it can use")
    return str(attribute(_CUDA, 0, _COMPUTE_VERSION))


def _load(name: str, places: Sequence[Path], missing: str) -> None:
    for place in [name, *map(str, places)]:
        try:
            ctypes.CDLL(place, ctypes.RTLD_GLOBAL)
            return
        except OSError:
            continue
    raise ArtifactError(missing)


class GpuProgram:
    """A library for GPUs with its weights, callable from any thread.

    Weights and code are shared; each thread has a virtual machine of its own.
    """

    def __init__(
        self,
        library: Path,
        weights: Sequence[np.ndarray],
        demands: Sequence[str],
    ) -> None:
        """Copy the weights to the GPU.

        Args:
            demands: what the numbers of the last output stand for (`manifest["gpu"]`).

        Raises:
            ArtifactError: this machine cannot run the library.
        """
        _connect()
        self._ffi = ffi()
        self._device = self._ffi.device("cuda", 0)
        self._allocate = self._ffi.get_global_func("runtime.TVMTensorAllocWithScope")
        self._copy = self._ffi.get_global_func("runtime.TVMTensorCopyFromTo")
        self._synchronize = self._ffi.get_global_func("runtime.Device_StreamSync")
        self._module = self._ffi.load_module(str(library))
        self._demands = list(demands)
        self._local = threading.local()
        try:
            self._weights = [self._to_device(array) for array in passed(weights)]
            self._main()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ArtifactError(f"{library.parent}: the GPU refuses it ({reason})") from None

    def _main(self) -> Any:
        main = getattr(self._local, "main", None)
        if main is None:
            machine = self._module["vm_load_executable"]()
            # Sizes are computed on the CPU.
            devices = (_CUDA, 0, _ALLOCATOR, _CPU, 0, _ALLOCATOR)
            machine["vm_initialization"](*devices)
            self._local.machine = machine
            main = self._local.main = machine["main"]
        return main

    def __call__(self, inputs: Inputs) -> list[np.ndarray]:
        """Run on arrays in signature order.

        Raises:
            IdError: an id lies outside its table.
            InputError: the GPU has no room for this batch, or sizes of inputs disagree.
        """
        try:
            tensors = self._main()(*map(self._to_device, inputs), *self._weights)
        except RuntimeError as error:
            raise _translated(error) from None
        results = [self._to_host(tensor) for tensor in tensors]
        if self._demands:
            self._check(results.pop())
        return results

    def _check(self, broken: np.ndarray) -> None:
        for message, count in zip(self._demands, broken.tolist()):
            if not count:
                continue
            _, found, rest = message.partition(ID_ERROR)
            if found:
                raise IdError(f"an id is out of range: {rest}")
            raise InputError(message)

    def _to_device(self, array: np.ndarray) -> Any:
        source = self._ffi.from_dlpack(array)
        shape = self._ffi.Shape(array.shape)
        target = self._allocate(shape, self._ffi.dtype(str(array.dtype)), self._device, None)
        self._copy(source, target)
        return target

    def _to_host(self, tensor: Any) -> np.ndarray:
        result = np.empty(tuple(tensor.shape), str(tensor.dtype))
        (passable,) = passed([result])
        self._copy(tensor, self._ffi.from_dlpack(passable))
        self._synchronize(self._device, 0)
        return result


def _translated(error: RuntimeError) -> Exception:
    """An error of the runtime as the user is to see it."""
    if "out of memory" in str(error).lower():
        return InputError("the GPU has no room for this batch; run smaller ones")
    return error
