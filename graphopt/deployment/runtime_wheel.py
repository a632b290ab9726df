"""The runtime as a wheel: what pip installs where artifacts are served, without the compiler.

    graphopt_runtime-VERSION-cp311-cp311-linux_x86_64.whl

holds the modules that a bundle holds (see `graphopt.deployment.bundle`), under their own names, so
that `import graphopt` works as it does with the compiler. It is not for an environment that has
that.
The format is that of the packaging specification "Binary distribution format".
"""

from __future__ import annotations

import base64
import hashlib
import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from graphopt.deployment.bundle import copy_runtime
from graphopt.errors import OutputError
from graphopt.ir.atomic import replacing, temporary_folder

NAME = "graphopt_runtime"
_NEEDS = ("numpy>=2.0", "typing-extensions>=4.13")  # the latter is what tvm_ffi asks for
_LICENSED = ("apache-tvm", "apache-tvm-ffi")


def write_wheel(folder: str | Path) -> Path:
    """Write the wheel for this Python and architecture into `folder`; returns its path.

    Raises:
        ArtifactError: TVM's runtime is not installed.
        OutputError: the wheel cannot be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder; create it first")
    python, release = f"cp{sys.version_info.major}{sys.version_info.minor}", version("graphopt")
    tag = f"{python}-{python}-linux_{platform.machine()}"
    path = folder / f"{NAME}-{release}-{tag}.whl"
    with temporary_folder(folder) as content, replacing(path) as temporary:
        copy_runtime(content)
        info = content / f"{NAME}-{release}.dist-info"
        _describe(info, release, tag)
        _pack(content, info, temporary)
    return path


def _describe(info: Path, release: str, tag: str) -> None:
    """The files that say what the wheel is."""
    info.mkdir()
    wheel = ["Wheel-Version: 1.0", "Generator: graphopt", "Root-Is-Purelib: false", f"Tag: {tag}"]
    (info / "WHEEL").write_text("\n".join(wheel) + "\n")
    about = [
        "Metadata-Version: 2.1",
        f"Name: {NAME.replace('_', '-')}",
        f"Version: {release}",
        "Summary: Runs artifacts of graphopt, with TVM's runtime and without the compiler",
        f"Requires-Python: =={sys.version_info.major}.{sys.version_info.minor}.*",
        *(f"Requires-Dist: {need}" for need in _NEEDS),
    ]
    (info / "METADATA").write_text("\n".join(about) + "\n")
    for package in _LICENSED:
        _copy_licences(package, info / "licenses" / package)


def _copy_licences(package: str, target: Path) -> None:
    from importlib.metadata import files

    target.mkdir(parents=True)
    for file in files(package) or ():
        if file.name in ("LICENSE", "NOTICE"):
            shutil.copy2(str(file.locate()), target / "-".join(file.parts[1:]))


def _pack(content: Path, info: Path, wheel: Path) -> None:
    """All files of `content` in one archive, and their digests in its RECORD."""
    record = info / "RECORD"
    files = sorted(file for file in content.rglob("*") if file.is_file())
    lines = [_recorded(file, content) for file in files]
    record.write_text("\n".join([*lines, f"{record.relative_to(content)},,"]) + "\n")
    with ZipFile(wheel, "w", ZIP_DEFLATED) as archive:
        for file in [*files, record]:
            archive.write(file, file.relative_to(content))


def _recorded(file: Path, content: Path) -> str:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").digest()
    text = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    return f"{file.relative_to(content)},sha256={text},{file.stat().st_size}"
