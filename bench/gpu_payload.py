"""Packs cases, TVM's runtime and the measuring code into one file that `python FILE` runs.

It is a zip that unpacks itself (`gpu_unpack`); of a file with holes it has what is between them.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import gpu_unpack
import onnx_graphsurgeon
import tvm_ffi
import typing_extensions
from gpu_unpack import FILES, HOLES, part_name

import graphopt
from graphopt.errors import OutputError
from graphopt.ir.atomic import replacing
from graphopt.serving.runtime import runtime_folder

MOST = 60 << 20
"""Bytes that the file may have."""
LIBRARIES = ("libtvm_runtime.so", "libtvm_runtime_extra.so", "libtvm_runtime_cuda.so")
# Sources and tools in the wheel of tvm_ffi that running takes none of; its core links the testing
# library, so that stays.
_UNNEEDED = tuple(
    f"site/tvm_ffi/{part}/" for part in ("3rdparty", "cython", "include", "share", "src", "testing")
)

# Weights are in an artifact for each precision, mostly the same: the dictionary spans them all.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 128 << 20}]
MAIN = "import sys, gpu_unpack\nsys.exit(gpu_unpack.main())\n"


def pack(cases: Path, file: Path, python: str = "") -> int:
    """Write `file` from the folder `cases`; its size in bytes.

    Args:
        python: the version that will run it, such as "3.12"; this one if empty.

    Raises:
        OutputError: it cannot be written, or is larger than `MOST`.
    """
    with replacing(file) as temporary, tempfile.TemporaryDirectory() as scratch:
        files = [*_runtime(python, Path(scratch)), *_files(cases, "cases")]
        with zipfile.ZipFile(temporary, "w") as archive:
            archive.writestr("__main__.py", MAIN)
            archive.write(gpu_unpack.__file__, "gpu_unpack.py")
            with (
                archive.open(FILES, "w", force_zip64=True) as packed,
                lzma.open(packed, "w", filters=_FILTERS) as content,
                tarfile.open(fileobj=content, mode="w|") as tar,
            ):
                for path, name in files:
                    _add(tar, path, name)
        size = temporary.stat().st_size
        if size > MOST:
            raise OutputError(
                f"{file}: would have {size >> 20} MiB, {MOST >> 20} are allowed; "
                "take fewer models, batch sizes or architectures"
            )
    return size


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    """A file, or what it has between holes."""
    parts, size = _data(path), path.stat().st_size
    if parts == [(0, size)]:
        tar.add(path, name)
        return
    index = json.dumps({"size": size, "offsets": [offset for offset, _ in parts]}).encode()
    with path.open("rb") as content:
        for part, source, nbytes in [
            (name + HOLES, io.BytesIO(index), len(index)),
            *((part_name(name, offset), content, nbytes) for offset, nbytes in parts),
        ]:
            entry = tarfile.TarInfo(part)
            entry.size = nbytes
            if source is content:
                content.seek(int(part.rpartition("@")[2]))
            tar.addfile(entry, source)


def _data(path: Path) -> list[tuple[int, int]]:
    """Where a file has no holes: offsets and bytes."""
    size = path.stat().st_size
    parts: list[tuple[int, int]] = []
    with path.open("rb") as file:
        start = 0
        while start < size:
            try:
                start = os.lseek(file.fileno(), start, os.SEEK_DATA)
            except OSError:  # nothing but a hole follows
                break
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            parts.append((start, end - start))
            start = end
    return parts or [(0, 0)]


def _runtime(python: str, scratch: Path) -> Iterator[tuple[Path, str]]:
    """What it takes to load and measure artifacts: files, and their names in the archive."""
    for package in (graphopt, onnx_graphsurgeon):  # the latter reads models for PyTorch
        folder = Path(package.__file__).parent
        yield from _files(folder, f"site/{package.__name__}", "**/*.py")
    yield from _files(Path(__file__).parent, "site", "*.py")
    for name in LIBRARIES:
        yield from _files(runtime_folder(), "site/tvm/lib", name)
    wheel = _downloaded(python, scratch) if python else Path(tvm_ffi.__file__).parent.parent
    for pattern in ("tvm_ffi/**/*", "apache_tvm_ffi*/*"):
        for path, name in _files(wheel, "site", pattern):
            if not name.startswith(_UNNEEDED) and path.suffix != ".pyc":
                yield path, name
    yield Path(typing_extensions.__file__), "site/typing_extensions.py"  # tvm_ffi needs it


def _files(folder: Path, name: str, pattern: str = "**/*") -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.glob(pattern)):
        if path.is_file():
            yield path, f"{name}/{path.relative_to(folder)}"


def _downloaded(python: str, scratch: Path) -> Path:
    """The wheel of tvm_ffi for another Python, unpacked."""
    wanted = f"apache-tvm-ffi=={version('apache-tvm-ffi')}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--dest", str(scratch)]
    for tag in ("2_28", "2_24", "2_17"):
        command += ["--platform", f"manylinux_{tag}_x86_64"]
    done = subprocess.run([*command, wanted], capture_output=True, text=True)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise OutputError(f"{wanted} for Python {python} cannot be downloaded: {last[0]}")
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch / "wheel")
    return scratch / "wheel"
