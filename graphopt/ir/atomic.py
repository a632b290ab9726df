"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EEXIST, ENOTEMPTY
from pathlib import Path

from graphopt.errors import OutputError

_ATTEMPTS = 100  # to replace a folder that other processes replace all the time

_unfinished: set[Path] = set()


def discard_unfinished() -> None:
    """Remove all that is half written, for a process that is to end without unwinding."""
    for path in list(_unfinished):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file name beside `path`, renamed to it at the end and removed on any error.

    Raises:
        OutputError: it cannot be written.
    """
    if path.exists() and not path.is_file():  # /dev/null must not become a file of ours
        raise OutputError(f"{path}: exists and is not a regular file; choose another name")
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        _unfinished.add(temporary)
        temporary.chmod(0o666 & ~_umask())
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise _not_written(error, path) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
            _unfinished.discard(temporary)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: a temporary one that takes the place of `path` at the end.

    The system renames one folder at a time, so for an instant there is none. Where processes load
    it meanwhile, let `path` be a new name each time, and a symbolic link to it what they load.

    Raises:
        OutputError: it cannot be written.
    """
    with temporary_folder(path.parent) as temporary:
        new = temporary / "new"
        new.mkdir()
        yield new
        for attempt in range(_ATTEMPTS):
            with suppress(FileNotFoundError):
                os.replace(path, temporary / f"old{attempt}")
            try:
                return os.replace(new, path)
            except OSError as error:  # another process was quicker to put its own there
                if error.errno not in (ENOTEMPTY, EEXIST) or attempt == _ATTEMPTS - 1:
                    raise


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A hidden folder in `parent`, removed with what is still in it.

    Raises:
        OutputError: it, or something in it, cannot be written.
    """
    temporary: Path | None = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=".graphopt-", dir=parent))
        _unfinished.add(temporary)
        yield temporary
    except OSError as error:
        raise _not_written(error, Path(error.filename or parent)) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
            _unfinished.discard(temporary)


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder like those of `tempfile`, which `discard_unfinished` removes, too."""
    folder = tempfile.TemporaryDirectory(prefix="graphopt-")
    path = Path(folder.name)
    _unfinished.add(path)
    weakref.finalize(folder, _unfinished.discard, path)
    return folder


def _not_written(error: OSError, where: Path) -> Exception:
    """The error to raise for what the system said; others of its class are not about files."""
    if error.errno is None:
        return error
    return OutputError(f"{where}: cannot be written ({error.strerror or error})")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
