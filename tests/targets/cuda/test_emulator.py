"""The emulator itself, on kernels written for it: good ones are right, bad ones are refused."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gpu_emulator
import numpy as np
import pytest

N = 64
HEAD = 'extern "C" __global__ void __launch_bounds__(64) k(float* __restrict__ o, float* i) {\n'
GOOD = """
  __shared__ alignas(64) float s[64];
  s[threadIdx.x] = i[threadIdx.x];
  __syncthreads();
  float v = s[63 - threadIdx.x];
  unsigned m = __activemask();
  v += __shfl_down_sync(m, v, 16, 32);
  o[threadIdx.x] = __shfl_sync(m, v, 0, 32);
}"""
BAD = {
    "diverging branches": "if (threadIdx.x < 32) __syncthreads();\nelse __syncthreads(); }",
    "after 1 threads have ended": "if (threadIdx.x == 5) return;\n__syncthreads(); }",
    "deadlock": "if (threadIdx.x != 3) __shfl_sync(0xffffffff, i[threadIdx.x], 0, 32);\n}",
    "not in the mask": "o[threadIdx.x] = __shfl_sync(1, i[threadIdx.x], 0, 32); }",
    "data race in global": "o[threadIdx.x / 2] = i[0]; }",
    "data race in shared": GOOD.replace("__syncthreads();", ""),
}


def launched(body: str, folder: Path, races: bool) -> tuple[str, np.ndarray]:
    """The message of launching a kernel on 0, 1, …, and what it wrote."""
    library = ctypes.CDLL(str(gpu_emulator.library_of(HEAD + body, folder, races)))
    library.emulator_error.restype = ctypes.c_char_p
    arrays = [np.zeros(N, np.float32), np.arange(N, dtype=np.float32)]
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
    arguments = (ctypes.c_void_p * 2)(*(ctypes.addressof(pointer) for pointer in pointers))
    sizes = [(ctypes.c_uint * 3)(n, 1, 1) for n in (1, N)]
    library.emulator_launch_k(*sizes, 0, arguments)
    return library.emulator_error().decode(), arrays[0]


@pytest.mark.parametrize("races", [False, True])
def test_good_kernel(races: bool, emulation: Path) -> None:
    message, found = launched(GOOD, emulation, races)
    assert message == ""
    np.testing.assert_array_equal(found, np.repeat([63 + 47, 31 + 15], 32))


@pytest.mark.parametrize("message", BAD)
def test_bad_kernel(message: str, emulation: Path) -> None:
    assert message in launched(BAD[message], emulation, races=True)[0]


def test_what_is_not_written_is_not_a_number(emulation: Path) -> None:
    body = "__shared__ float s[64];\n__syncthreads();\no[threadIdx.x] = s[threadIdx.x];\n}"
    message, found = launched(body, emulation, races=False)
    assert message == "" and np.isnan(found).all()


def test_assembly_is_refused() -> None:
    with pytest.raises(NotImplementedError):
        gpu_emulator.translated('asm volatile("cp.async.wait_group 0;");')
