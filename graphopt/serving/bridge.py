"""TVM's bridge to Python, without PyTorch.

TVM and its bridge import PyTorch wherever it is installed: seconds and 150 MB, of no use to us.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def absent(package: str) -> Iterator[None]:
    """Lets nothing that this thread imports find `package`, if it has not been imported yet."""
    thread = threading.get_ident()

    class Finder:
        @staticmethod
        def find_spec(name: str, *_: Any) -> None:
            if name == package and threading.get_ident() == thread:
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, Finder)
    try:
        yield
    finally:
        sys.meta_path.remove(Finder)


def load() -> Any:
    """The module `tvm_ffi`."""
    with absent("torch"):
        import tvm_ffi
    return tvm_ffi
