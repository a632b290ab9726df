"""CUDA C → machine code for several GPUs, by NVIDIA's compiler, which needs no GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from graphopt.errors import OutputError
from graphopt.ir.atomic import scratch_folder

_ALL = "pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-cccl"
MISSING = f"target cuda needs NVIDIA's compiler nvcc; install it with: {_ALL}"
_ABSENT = re.compile(r"(\S+): (?:command )?not found|(\S+): No such file|(libdevice\S*)")
# Of what an nvcc may lack, the package that has it.
_PACKAGES = {
    r"crt/": "nvidia-cuda-crt",
    r"(cuda/std|cub|thrust|nv)/": "nvidia-cuda-cccl",
    r".*\.h(pp)?$": "nvidia-cuda-runtime",
    r".*\b(cicc|libdevice|libnvvm)": "nvidia-nvvm",
    r".*\b(ptxas|fatbinary|cudafe\+\+|nvlink)$": "nvidia-cuda-nvcc",
}

# PTX takes most of the time to make. From this architecture on, that of the oldest is as good for
# all: our code asks for nothing that only newer ones have.
_ONE_PTX = 80
Resources = dict[str, dict[str, dict[str, int]]]
"""What each kernel takes, by architecture: `registers`, `shared_bytes`, `spill_bytes`."""


def find() -> Path:
    """The compiler: that of $CUDA_HOME, the one on the PATH, or that of the package from PyPI.

    Raises:
        OutputError: there is none.
    """
    home = os.environ.get("CUDA_HOME")
    if home and (Path(home) / "bin" / "nvcc").exists():
        return Path(home) / "bin" / "nvcc"
    found = shutil.which("nvcc")
    if found:
        return Path(found)
    package = importlib.util.find_spec("nvidia")
    for folder in (package.submodule_search_locations or []) if package else []:
        for nvcc in sorted(Path(folder).glob("cu*/bin/nvcc"), reverse=True):
            return nvcc
    raise OutputError(MISSING)


def fatbin(source: str, architectures: Sequence[str]) -> tuple[bytes, Resources]:
    """Machine code for each of `architectures`, and PTX of the first for GPUs that come later.

    Args:
        architectures: such as "sm_80", oldest first.

    Raises:
        OutputError: there is no compiler, or it fails.
    """
    with scratch_folder() as folder:
        code, binary = Path(folder) / "model.cu", Path(folder) / "model.fatbin"
        code.write_text(source)
        command = [str(find()), "--fatbin", "-O3", "-std=c++17", "-w", "--threads", "0"]
        command += ["--ptxas-options=-v", "-o", str(binary), str(code)]
        oldest = _number(architectures[0])
        for name in architectures:
            number = oldest if oldest >= _ONE_PTX else _number(name)
            command.append(f"-gencode=arch=compute_{number},code={name}")
        command.append(f"-gencode=arch=compute_{oldest},code=compute_{oldest}")
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise OutputError(f"{command[0]} cannot be run: {error.strerror}") from None
        if done.returncode:
            raise OutputError(_failure(command[0], done.stderr + done.stdout))
        return binary.read_bytes(), resources(done.stderr + done.stdout)


def _failure(compiler: str, log: str) -> str:
    """Why nvcc failed, in one line; where it lacks a part, the package that has it."""
    for match in _ABSENT.finditer(log):
        part = next(name for name in match.groups() if name)
        for pattern, package in _PACKAGES.items():
            if re.match(pattern, part):
                cure = _cure(package, compiler)
                return f"{compiler} lacks {Path(part).name}; install it with: {cure}"
    lines = [line for line in log.splitlines() if line.strip()] or ["it does not say why"]
    reason = next((line for line in lines if "error" in line or "fatal" in line), lines[-1])
    return f"nvcc failed: {reason.strip()[:200]}"


def _cure(package: str, compiler: str) -> str:
    """A package for the compiler from PyPI; all of that instead of another one."""
    if "nvidia" in Path(compiler).parts:
        return f"pip install {package}"
    return f"{_ALL} {package}, and set CUDA_HOME to the folder nvidia/cu13 that this makes"


def _number(architecture: str) -> int:
    return int(architecture.removeprefix("sm_").rstrip("a"))


def resources(log: str) -> Resources:
    """What `ptxas -v` says of each kernel."""
    found: Resources = {}
    kernel: dict[str, int] = {}
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            kernel = {"registers": 0, "shared_bytes": 0, "spill_bytes": 0}
            found.setdefault(match[2], {})[match[1]] = kernel
        elif match := re.search(r"(\d+) bytes spill stores", line):
            kernel["spill_bytes"] = int(match[1])
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            kernel |= {"registers": int(match[1]), "shared_bytes": int(shared[1]) if shared else 0}
    return found
