"""Instructions that the machine that runs the tests may lack."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

from graphopt.machine import host_features, tiles_allowed
from graphopt.targets.cpu.kernels.amx import Amx


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Amx:
    """AMX as C functions, for machines without it."""
    library = tmp_path_factory.mktemp("amx") / "amx.so"
    source = Path(__file__).with_name("amx_emulator.c")
    flags = ["-O2", "-fno-strict-aliasing", "-mfma", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, source, "-o", library, "-lm"], check=True)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    return Amx("emulated_")


@pytest.fixture(scope="session")
def hardware() -> Amx:
    """AMX itself."""
    if not {"amx_tile", "amx_bf16", "amx_int8"} <= host_features():
        pytest.skip("this CPU lacks AMX")
    if not tiles_allowed():
        pytest.skip("the system does not let this process use AMX")
    return Amx()


@pytest.fixture(params=["emulated", "hardware"])
def tiles(request: pytest.FixtureRequest) -> Amx:
    """Both in turn."""
    found: Amx = request.getfixturevalue(request.param)
    return found
