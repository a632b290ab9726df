"""Instructions that the machine that runs the tests may lack."""

import ctypes
import subprocess
from pathlib import Path

import pytest

from graphopt.machine import host_features, tiles_allowed
from graphopt.targets.cpu.kernels.amx import Amx


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Amx:
    """Instructions of AMX as C functions, where AMX is not at hand."""
    library = tmp_path_factory.mktemp("amx") / "amx.so"
    source = Path(__file__).with_name("amx_emulator.c")
    flags = ["-O2", "-fno-strict-aliasing", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, source, "-o", library, "-lm"], check=True)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    return Amx("emulated_")


@pytest.fixture(params=["emulated", "in hardware"])
def tiles(request: pytest.FixtureRequest) -> Amx:
    """Instructions of AMX for bfloat16, once as C functions and once as they are."""
    if request.param == "emulated":
        return request.getfixturevalue("emulated")  # type: ignore[no-any-return]
    if not ({"amx_tile", "amx_bf16"} <= host_features() and tiles_allowed()):
        pytest.skip("this CPU lacks AMX for bfloat16")
    return Amx()
