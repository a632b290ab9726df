"""Executes the CUDA C of an artifact on the CPU, by TVM's own CUDA runtime on stand-ins for CUDA.

`compiled_for_emulation` replaces nvcc: what the artifact then holds as its GPU code is the path of
a library that g++ made of the same source. `run` loads the artifact in a process of its own, where
the stand-ins are `libcuda.so.1` and `libcudart.so.13`, and runs it as a server would. Such
processes are forks of one.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import tvm

from graphopt.targets.cuda import build, nvcc
from graphopt.targets.cuda.straight import Straight

HERE = Path(__file__).parent
MAGIC = b"graphopt emulator:"
_KERNEL = re.compile(
    r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\([^)]*\) \{'
)
_SYNCHRONIZES = re.compile(r"__syncthreads|__shfl|__activemask|__syncwarp|graphopt::")
_ASSEMBLY = re.compile(r"\basm(?: volatile)?\s*\(((?:[^;\"]|\"[^\"]*\")*)\);")
_INSTRUCTIONS = frozenset(
    name
    for header in ("ptx.h", "cuda_pipeline.h")
    for name in re.findall(r"\bPTX_(\w+)\(", (HERE / "include" / header).read_text())
)  # that are emulated, with _ for each dot


class LaunchError(Exception):
    """The emulated program failed: a race, a bad barrier, an access out of bounds, an error."""


@dataclass(frozen=True)
class Mode:
    """How to execute.

    Attributes:
        races: look for data races, which is slow.
        guard: let every allocation end at a page that cannot be touched.
        order: of threads and blocks: 0 forward, 1 backward, otherwise the seed of a random one.
    """

    races: bool = False
    guard: bool = False
    order: int = 0


def translated(source: str) -> str:
    """CUDA C as C++ for `device.h`, with an entry point for each kernel.

    Raises:
        NotImplementedError: it holds an instruction of PTX that is not emulated.
    """
    dynamic = r"extern __shared__ (?:__align__\(\d+\) |alignas\(\d+\) )?(\w[\w ]*?) (\w+)\[\];"
    source = re.sub(dynamic, r"\1* \2 = (\1*)emulator::dynamic_shared;", source)
    aligned = r"__shared__ __attribute__((aligned(\1)))"
    source = re.sub(r"__shared__ alignas\((\d+)\)", aligned, source)
    source = _ASSEMBLY.sub(_as_call, source)
    entries = []
    for match in _KERNEL.finditer(source):
        waits = _SYNCHRONIZES.search(source, match.end(), source.find("\n}", match.end()))
        entries.append(f"EMULATOR_KERNEL({match[1]}, {'true' if waits else 'false'})\n")
    return source + "\n" + "".join(entries)


def _as_call(assembly: re.Match[str]) -> str:
    """One instruction of inline PTX as a call on its operands."""
    text, _, operands = assembly[1].partition(":")
    opcode = text.strip().strip('"').split()[0].replace(".", "_")
    if opcode not in _INSTRUCTIONS:
        if assembly.start() < assembly.string.find('extern "C" __global__'):
            return assembly[0]  # TVM's own, which no kernel here calls
        raise NotImplementedError(f"{text.strip()} is not emulated")
    values = re.findall(r'"[^"]*"\s*\(((?:[^()]|\([^()]*\))*)\)', operands)
    return f"PTX_{opcode}({', '.join(values)});"


def library_of(source: str, folder: Path, races: bool) -> Path:
    """The library that g++ makes of CUDA C."""
    code = translated(source)
    name = hashlib.sha256(code.encode()).hexdigest()[:16] + ("-races" if races else "")
    library, file, compiled = (folder / f"{name}{end}" for end in (".so", ".cc", ".o"))
    if library.exists():
        return library
    file.write_text(code)
    options = ["-std=c++17", "-w", "-fPIC", "-O1", "-fno-strict-aliasing", "-ffp-contract=off"]
    options += ["-fno-gnu-unique"]  # each library has a state of its own
    options += ["-I", str(HERE / "include")]
    if races:
        options += ["-fsanitize=thread", "-DEMULATOR_RACES", "-fno-threadsafe-statics"]
    header = folder / f"device{'-races' if races else ''}.h"
    runtime = header.with_suffix(".o")
    if not runtime.exists():  # what all sources with these options share
        header.write_text(f'#include "{HERE / "device.h"}"\n')
        _execute(["g++", *options, "-x", "c++-header", "-o", f"{header}.gch", str(header)])
        runs = ["-DEMULATOR_RUNTIME", "-x", "c++", "-c", "-o", str(runtime), str(HERE / "device.h")]
        _execute(["g++", *options, *runs])
    # The instrumentation is wanted, the library that usually comes with it is not.
    _execute(["g++", *options, "-include", str(header), "-c", "-o", str(compiled), str(file)])
    _execute(["g++", "-shared", "-o", str(library), str(compiled), str(runtime)])
    return library


@contextmanager
def compiled_for_emulation(
    folder: Path, *, races: bool = False, machine: bool = False, edit: Callable[[str], str] = str
) -> Iterator[list[tvm.IRModule]]:
    """Within, `--target cuda` builds artifacts whose kernels run here.

    Args:
        folder: gets the libraries; artifacts refer to them.
        machine: make all programs ones for the virtual machine, which gives each tensor memory of
            its own. Guard pages stand at every tensor then.
        edit: changes the source first.

    Yields:
        a list, to which each program that is built is added, fused and scheduled.
    """
    programs: list[tvm.IRModule] = []
    straighten = build.straighten

    def fatbin(source: str, architectures: Sequence[str]) -> tuple[bytes, nvcc.Resources]:
        library = library_of(edit(source), folder, races)
        return MAGIC + str(library).encode() + b"\0", {}

    def straightened(module: tvm.IRModule) -> Straight | None:
        programs.append(module)
        return None if machine else straighten(module)

    with (
        mock.patch.object(nvcc, "fatbin", fatbin),
        mock.patch.object(nvcc, "find", lambda: Path("nvcc")),
        mock.patch.object(build, "straighten", straightened),
    ):
        yield programs


def stand_ins(folder: Path) -> list[Path]:
    """`libcuda.so.1` and `libcudart.so.13`, compiled into `folder`."""
    made = []
    for source, name in (("driver.cc", "libcuda.so.1"), ("runtime.cc", "libcudart.so.13")):
        library = folder / name
        if not library.exists():
            options = ["-std=c++17", "-O1", "-fPIC", "-shared", f"-Wl,-soname,{name}"]
            versions = folder / "versions"
            if name.startswith("libcudart"):
                versions.write_text(f"{name} {{ global: cuda*; local: *; }};")
                options.append(f"-Wl,--version-script={versions}")
            _execute(["g++", *options, "-o", str(library), str(HERE / source), "-ldl"])
        made.append(library)
    return made


def run(
    artifact: Path,
    feeds: Sequence[Mapping[str, np.ndarray]],
    folder: Path,
    mode: Mode = Mode(),
    architecture: int = 90,
) -> list[dict[str, np.ndarray]]:
    """The outputs of an artifact for each of `feeds`.

    Raises:
        LaunchError: what went wrong, in one line.
    """
    with tempfile.TemporaryDirectory(dir=folder) as workspace:
        for k, feed in enumerate(feeds):
            np.savez(Path(workspace) / f"in{k}.npz", **feed)
        settings = {
            "EMULATOR_ORDER": str(mode.order),
            "EMULATOR_GUARD": str(int(mode.guard)),
            "EMULATOR_ARCHITECTURE": str(architecture),
        }
        parent = _parent(folder)
        assert parent.stdin is not None and parent.stdout is not None
        print(json.dumps([str(artifact), workspace, settings]), file=parent.stdin, flush=True)
        _check(int(parent.stdout.readline()), (Path(workspace) / "said").read_text())
        results = []
        for k in range(len(feeds)):
            with np.load(Path(workspace) / f"out{k}.npz") as arrays:
                results.append({name: _known(array) for name, array in arrays.items()})
        return results


def _known(array: np.ndarray) -> np.ndarray:
    """An array of a file, which does not know bfloat16."""
    return array.view(ml_dtypes.bfloat16) if array.dtype.kind == "V" else array


@cache
def _parent(folder: Path) -> subprocess.Popen[str]:
    """The process whose forks run artifacts."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "child.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(folder, {}),
    )
    atexit.register(process.communicate)  # which ends it
    return process


def serve(
    cases: Sequence[str], artifact: Path, folder: Path, settings: Mapping[str, int]
) -> dict[str, str]:
    """What went wrong in each of the cases of `serving.py`; nothing where it is empty.

    Args:
        settings: of the stand-ins, such as EMULATOR_MEMORY.

    Raises:
        LaunchError: the process ended before its time.
    """
    output = _on_stand_ins("serving.py", [artifact, *cases], folder, settings)
    found: dict[str, str] = json.loads(output.splitlines()[-1])
    return found


def tune(
    model: Path,
    cache: Path,
    folder: Path,
    trials: int,
    batches: Sequence[int],
    architecture: int = 90,
    target: str = "cuda",
) -> dict[str, Any]:
    """The facts of a compilation that tunes on the stand-ins.

    Raises:
        LaunchError: what went wrong, in one line.
    """
    settings = {"EMULATOR_ARCHITECTURE": architecture}
    arguments = [model, cache, folder, trials, target, *batches]
    output = _on_stand_ins("tune.py", arguments, folder, settings)
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


@contextmanager
def rpc_server(folder: Path, architecture: int = 90) -> Iterator[int]:
    """Within, a server of TVM's RPC on the stand-ins waits at the port that is given."""
    settings = {"EMULATOR_ARCHITECTURE": architecture}
    server = subprocess.Popen(
        [sys.executable, str(HERE / "rpc_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(folder, settings),
    )
    assert server.stdin is not None and server.stdout is not None
    try:
        yield int(server.stdout.readline())
    finally:
        server.stdin.close()  # which ends it
        server.stdout.close()
        server.wait()


def _on_stand_ins(
    script: str, arguments: Sequence[object], folder: Path, settings: Mapping[str, int]
) -> str:
    """What a script prints."""
    environment = _environment(folder, settings)
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    _check(done.returncode, done.stderr)
    return done.stdout


def _check(status: int, said: str) -> None:
    """Raise what a process ended with."""
    if status < 0:
        raise LaunchError(f"killed by signal {-status}")
    if status:
        raise LaunchError(said.strip().splitlines()[-1])


def _environment(folder: Path, settings: Mapping[str, int]) -> dict[str, str]:
    """Of a process on the stand-ins."""
    libraries = ":".join(map(str, stand_ins(folder)))
    environment = os.environ | {name: str(value) for name, value in settings.items()}
    environment |= {"LD_PRELOAD": libraries, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    if "coverage" in sys.modules and sys.modules["coverage"].Coverage.current():
        environment["COVERAGE_PROCESS_START"] = str(HERE.parent.parent / "pyproject.toml")
    return environment


def _execute(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
