"""Machine code in the place of CUDA C, in what TVM packs into a library.

Without a GPU at hand TVM packs the source, for the serving machine to compile. The layout is that
of TVM 0.27, all numbers uint64: the size of what follows; two vectors, which say how modules import
one another; then for each module its kind and, unless that is "_lib", its bytes. Those of kind
"cuda" are the format, a table of functions, and the code to the end; strings follow their length.
`cuModuleLoadData` takes a fatbin under the format "cubin".
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tvm

_NUMBER = struct.Struct("<Q")


def packer(host: tvm.target.Target, compile_source: Callable[[str], bytes]) -> Callable[..., str]:
    """A function for `export_library(fpack_imports=…)` that packs compiled code."""
    to_tensor = tvm.get_global_func("runtime.ModulePackImportsToTensor")
    to_object = tvm.get_global_func("codegen.codegen_blob")

    def pack(module: Any, is_system_lib: bool, prefix: str, folder: str) -> str:
        blob = replaced(to_tensor(module).numpy().tobytes(), compile_source)
        file = str(Path(folder) / "devc.o")
        to_object(blob, is_system_lib, str(host), prefix).write_to_file(file)
        return file

    return pack


def replaced(blob: bytes, compile_source: Callable[[str], bytes]) -> bytes:
    """`blob` with the CUDA C in it compiled."""
    at = _NUMBER.size
    assert _NUMBER.unpack_from(blob)[0] == len(blob) - at, "TVM's packing has changed"
    for _ in range(2):
        (count,) = _NUMBER.unpack_from(blob, at)
        at += _NUMBER.size * (1 + count)
    parts = [blob[_NUMBER.size : at]]
    while at < len(blob):
        kind, at = _string(blob, at)
        parts.append(_packed(kind))
        if kind == b"_lib":
            continue
        content, at = _string(blob, at)
        parts.append(_packed(_compiled(content, compile_source) if kind == b"cuda" else content))
    return _packed(b"".join(parts))


def _compiled(content: bytes, compile_source: Callable[[str], bytes]) -> bytes:
    form, start = _string(content, 0)
    if form != b"cuda":
        return content
    ends = _strings_to_the_end(content, start)
    assert len(ends) == 1, "TVM's packing of CUDA modules has changed"
    source, _ = _string(content, ends[0])
    return _packed(b"cubin") + content[start : ends[0]] + _packed(compile_source(source.decode()))


def _strings_to_the_end(content: bytes, start: int) -> list[int]:
    """Where, from `start` on, a string may begin that ends with the content and is not empty."""
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(content, np.uint8), 8)[:-1]
    numbers = np.ascontiguousarray(windows).view("<u8").reshape(-1)
    rest = np.arange(len(content) - _NUMBER.size, 0, -1, dtype=np.uint64)
    found: list[int] = np.flatnonzero(numbers == rest).tolist()
    return [at for at in found if at >= start]


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    (size,) = _NUMBER.unpack_from(data, at)
    at += _NUMBER.size
    return data[at : at + size], at + size


def _packed(data: bytes) -> bytes:
    return _NUMBER.pack(len(data)) + data
