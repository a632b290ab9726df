"""Whether there is a GPU, and the libraries that reach it."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from graphopt.errors import ArtifactError
from graphopt.serving.runtime import ffi, runtime_folder

CPU, CUDA = 1, 2  # DLPack's numbers
_EXISTS, _COMPUTE_VERSION, _NAME = 0, 4, 5  # attributes of a device


def obstacle(architectures: Sequence[str]) -> str | None:
    """Why this machine cannot run code for these architectures; None if it can."""
    try:
        version = connect()
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


def connect() -> str:
    """Load TVM's CUDA runtime; the compute version of the GPU, such as "9.0".

    Raises:
        ArtifactError: says what is missing.
    """
    _load("libcuda.so.1", [], "this machine has no NVIDIA driver (libcuda.so.1)")
    cudart()
    attribute = ffi().get_global_func("runtime.GetDeviceAttr")
    library = runtime_folder() / "libtvm_runtime_cuda.so"
    _load(str(library), [], "TVM's CUDA runtime cannot be loaded")
    if not attribute(CUDA, 0, _EXISTS):
        raise ArtifactError("this machine has an NVIDIA driver, but no GPU that it can use")
    return str(attribute(CUDA, 0, _COMPUTE_VERSION))


def device_name() -> str:
    """The GPU's name, after `connect`."""
    return str(ffi().get_global_func("runtime.GetDeviceAttr")(CUDA, 0, _NAME))


@lru_cache(maxsize=1)
def cudart() -> ctypes.CDLL:
    """CUDA's runtime library.

    Raises:
        ArtifactError: it is not installed.
    """
    package = importlib.util.find_spec("nvidia")
    places = list(package.submodule_search_locations or []) if package else []
    found = [path for place in places for path in Path(place).glob("cu*/lib/libcudart.so.13")]
    hint = "CUDA's runtime is missing; install it with: pip install nvidia-cuda-runtime"
    return _load("libcudart.so.13", found, hint)


def _load(name: str, places: Sequence[Path], missing: str) -> ctypes.CDLL:
    for place in [name, *map(str, places)]:
        try:
            return ctypes.CDLL(place, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
    raise ArtifactError(missing)
