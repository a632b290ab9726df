"""A compiled artifact together with the runtime that runs it: a folder for a serving image.

    FOLDER/model.gopt    the artifact, without its portable form
    FOLDER/graphopt      the modules that loading and running take
    FOLDER/tvm, tvm_ffi  TVM's runtime libraries and the bridge to them

With FOLDER on `PYTHONPATH`, Python of the same version needs NumPy and typing_extensions besides.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from graphopt.errors import ArtifactError, OutputError
from graphopt.ir.atomic import replacing_folder
from graphopt.serving.manifest import LIBRARY, MANIFEST, WEIGHTS, read_manifest
from graphopt.serving.runtime import runtime_folder

ARTIFACT = "model.gopt"
MODULES = ("__init__.py", "errors.py", "machine.py", "serving")
"""What of this package a serving process imports."""
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "include", "src", "share", "testing", "cython")


def bundle(artifact: str | Path, output: str | Path) -> None:
    """Write `output`, a new folder with the artifact and its runtime.

    Raises:
        ArtifactError: the artifact cannot be used, or the runtime is not installed.
        OutputError: `output` exists or cannot be written.
    """
    artifact, output = Path(artifact), Path(output)
    read_manifest(artifact)
    if output.exists():
        raise OutputError(f"{output}: exists; choose another name")
    if not output.parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder; create it first")
    with replacing_folder(output) as folder:
        (folder / ARTIFACT).mkdir()
        for name in (MANIFEST, LIBRARY, WEIGHTS):
            _copied(artifact / name, folder / ARTIFACT / name)
        copy_runtime(folder)


def copy_runtime(folder: Path) -> None:
    """Put what runs artifacts into `folder`: the packages graphopt, tvm and tvm_ffi.

    Raises:
        ArtifactError: the runtime is not installed.
        OutputError: a file cannot be copied.
    """
    own, bridge, libraries = Path(__file__).parents[1], _package("tvm_ffi"), runtime_folder()
    (folder / "graphopt").mkdir()
    for name in MODULES:
        _copied(own / name, folder / "graphopt" / name)
    _copied(bridge, folder / "tvm_ffi")
    (folder / "tvm" / "lib").mkdir(parents=True)
    for library in libraries.glob("libtvm_runtime*.so"):
        _copied(library, folder / "tvm" / "lib" / library.name)


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ArtifactError("TVM's runtime is missing; install it with: pip install apache-tvm-ffi")
    return Path(spec.origin).parent


def _copied(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=_LEFT_OUT, copy_function=_copy_file)
    else:
        _copy_file(source, target)


def _copy_file(source: str | Path, target: str | Path) -> None:
    """An error of the system's would not stop `copytree`, which goes on and lists all of them."""
    try:
        shutil.copy2(source, target)
    except OSError as error:
        raise OutputError(f"{source}: cannot be copied ({error.strerror or error})") from error
