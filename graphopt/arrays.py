"""Named arrays from and to `.npz` files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from graphopt.errors import InputError, OutputError
from graphopt.ir.atomic import replacing


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file; nothing in it is executed.

    Raises:
        InputError: it is missing, damaged, of another kind, or holds Python objects.
    """
    try:
        opened = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, EOFError, zipfile.BadZipFile):
        raise InputError(f"{path}: not an .npz file; write it with numpy.savez") from None
    if isinstance(opened, np.ndarray):
        raise InputError(f"{path}: holds one unnamed array; write an .npz with numpy.savez")
    with opened:
        return {name: _member(path, opened, name) for name in opened.files}


def _member(path: Path, archive: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    try:
        return archive[name]
    except ValueError:
        raise InputError(
            f"{path}: array {name!r} holds Python objects; convert it to numbers"
        ) from None
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error):
        raise InputError(f"{path}: array {name!r} is damaged; write the file again") from None


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an `.npz` file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder; create it first")
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's own keyword is positional
