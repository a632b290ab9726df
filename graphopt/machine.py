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
    return _told("model name") or platform.processor() or platform.machine()


def host_features() -> set[str]:
    """Instruction sets of this CPU, as Linux names them; empty where that is not known."""
    return set(_told("flags", "Features").split())


def _told(*names: str) -> str:
    """What Linux says of this CPU under one of `names`; "" where it does not."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(names):
                return line.partition(":")[2].strip()
    return ""


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
