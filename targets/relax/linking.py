"""Shared libraries for this architecture and for others."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tvm.support import cc

from graphopt.errors import OutputError

_PACKAGES = {"aarch64": "gcc-aarch64-linux-gnu", "x86_64": "gcc-x86-64-linux-gnu"}


def linker_options(machine: str) -> dict[str, Any]:
    """How `export_library` is to link for `machine`, an architecture as Linux names it.

    Raises:
        OutputError: there is nothing to link with; says what to install.
    """
    if machine == platform.machine():
        if cc.get_cc() is None:
            raise OutputError("the compiled code needs a C++ compiler to link it; install g++")
        return {}
    command = cross_compiler(machine)

    def link(output: str, objects: Sequence[str], **_: Any) -> None:
        arguments = [*command, "-shared", "-fPIC", "-o", output, *objects]
        done = subprocess.run(arguments, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)

    return {"fcompile": link}


def cross_compiler(machine: str) -> list[str]:
    """The command of a C compiler for another architecture.

    Raises:
        OutputError: there is none; says what to install.
    """
    gcc = shutil.which(f"{machine}-linux-gnu-gcc")
    if gcc:
        return [gcc]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu"]
    package = _PACKAGES.get(machine, f"gcc for {machine}")
    raise OutputError(
        f"code for {machine} needs a linker for it; install {package} (Debian, Ubuntu) or: "
        "pip install ziglang"
    )
