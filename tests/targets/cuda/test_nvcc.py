"""The compiler: machine code for several architectures, and what kernels take."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from conftest import EXAMPLE

import graphopt
from graphopt.errors import OutputError
from graphopt.targets.cuda import nvcc

LOG = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'gather_kernel' for 'sm_80'
ptxas info    : Function properties for gather_kernel
    0 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 20 registers, used 1 barriers, 264 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'gather_kernel' for 'sm_90'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
"""


def _missing() -> str:
    try:
        nvcc.find()
    except OutputError as error:
        return str(error)
    return ""


needs_nvcc = pytest.mark.skipif(bool(_missing()), reason=_missing())


def test_resources_are_read_off_the_log() -> None:
    assert nvcc.resources(LOG) == {
        "sm_80": {"gather_kernel": {"registers": 20, "shared_bytes": 264, "spill_bytes": 16}},
        "sm_90": {"gather_kernel": {"registers": 12, "shared_bytes": 0, "spill_bytes": 0}},
    }


@needs_nvcc
def test_compiled_for_each_architecture() -> None:
    source = 'extern "C" __global__ void one(float* x) { x[threadIdx.x] = 1; }'
    binary, resources = nvcc.fatbin(source, ("sm_80", "sm_90"))
    assert binary[:4] == bytes.fromhex("50ed55ba")  # the magic number of fat binaries
    assert set(resources) == {"sm_80", "sm_90"}
    assert resources["sm_90"]["one"]["spill_bytes"] == 0


@pytest.mark.parametrize(
    ("architectures", "made"),
    [
        (["sm_80", "sm_90"], ["80:sm_80", "80:sm_90", "80:compute_80"]),
        (["sm_90a", "sm_100"], ["90:sm_90a", "90:sm_100", "90:compute_90"]),
        (["sm_75", "sm_80"], ["75:sm_75", "80:sm_80", "75:compute_75"]),  # copies of its own
    ],
)
def test_ptx_is_made_once(
    architectures: list[str], made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "error: stop")

    monkeypatch.setattr(nvcc, "find", lambda: Path("nvcc"))
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(OutputError, match="stop"):
        nvcc.fatbin("", architectures)
    found = [re.fullmatch(r"-gencode=arch=compute_(\d+),code=(\w+)", a) for a in commands[0]]
    assert [f"{match[1]}:{match[2]}" for match in found if match] == made


@needs_nvcc
def test_errors_of_the_compiler_are_one_line() -> None:
    with pytest.raises(OutputError, match=r"nvcc failed: .*error") as caught:
        nvcc.fatbin("__global__ void f() { nothing; }", ("sm_80",))
    assert len(str(caught.value).splitlines()) == 1


@needs_nvcc
def test_artifact_holds_machine_code(tmp_path: Path) -> None:
    graphopt.compile(EXAMPLE, "cuda:sm_80,sm_90", output=tmp_path / "ctr.gopt", verify=False)
    library = (tmp_path / "ctr.gopt" / "model.so").read_bytes()
    assert bytes.fromhex("50ed55ba") in library
    assert b"__global__" not in library
    facts = json.loads((tmp_path / "ctr.gopt" / "report.json").read_text())["facts"]
    assert facts["nvcc_seconds"] > 0
    for kernels in facts["gpu_kernels"].values():
        # A kernel may have several launches, hence several entry points.
        assert len(kernels) >= facts["kernels"]
        assert not any(kernel["spill_bytes"] for kernel in kernels.values())


@pytest.mark.parametrize(
    ("says", "package"),
    [
        ("sh: 1: /a/nvidia/cu13/bin/../nvvm/bin/cicc: not found", "nvidia-nvvm"),
        ("<command-line>: fatal error: cuda_runtime.h: No such file or directory", "cuda-runtime"),
        ("e.cu:1:10: fatal error: cuda_fp16.h: No such file or directory", "cuda-runtime"),
        ("a.h:82:10: fatal error: crt/host_config.h: No such file or directory", "cuda-crt"),
        ("e.cu:2:10: fatal error: cuda/std/cstdint: No such file or directory", "cuda-cccl"),
        ("sh: 1: ptxas: not found", "cuda-nvcc"),
        ("sh: line 1: fatbinary: command not found", "cuda-nvcc"),
        ("fatal   : cannot open libdevice.10.bc", "nvidia-nvvm"),
    ],
)
@pytest.mark.parametrize("home", ["site-packages/nvidia/cu13", "toolkit"])
def test_of_a_compiler_that_lacks_parts_the_package_is_named(
    home: str, says: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / home / "bin" / "nvcc"
    compiler.parent.mkdir(parents=True)
    compiler.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / home))
    with pytest.raises(OutputError, match=rf"nvcc lacks .*: pip install .*{package}") as caught:
        nvcc.fatbin("", ("sm_80",))
    assert len(str(caught.value).splitlines()) == 1
    assert ("CUDA_HOME" in str(caught.value)) == (home == "toolkit")


def test_what_is_no_compiler_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").write_text("#!/bin/sh\nexit 3\n")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(OutputError, match=r"nvcc cannot be run: Permission denied"):
        nvcc.fatbin("", ("sm_80",))
    (tmp_path / "bin" / "nvcc").chmod(0o755)
    with pytest.raises(OutputError, match=r"nvcc failed: it does not say why"):
        nvcc.fatbin("", ("sm_80",))
