"""What this machine is."""

from __future__ import annotations

import ctypes
import platform
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _TILE_DATA = 158, 0x1023, 18  # of Linux on x86-64


def cpu_name() -> str:
    """What this CPU calls itself."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def host_features() -> set[str]:
    """Instruction sets of this CPU, as Linux names them; empty where that is not known."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def sums_bytes_exactly() -> bool:
    """Whether ONNX Runtime's sums of products of unsigned and signed bytes are exact here.

    On x86 CPUs without VNNI two products are added up in 16 bits, which saturates.
    """
    vnni = {"avx512_vnni", "avx_vnni"}
    return platform.machine() != "x86_64" or not vnni.isdisjoint(host_features())


@lru_cache(maxsize=1)
def tiles_allowed() -> bool:
    """Whether this process may use AMX's tile registers, which Linux wants to be asked for."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return False
    refused: int = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _TILE_DATA)
    return refused == 0
