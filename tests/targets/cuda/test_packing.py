"""The source in what TVM packs is replaced, and nothing else."""

from __future__ import annotations

import struct

from graphopt.targets.cuda.packing import replaced


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def blob(cuda: bytes) -> bytes:
    tree = struct.pack("<QQQ", 2, 0, 1) + struct.pack("<QQ", 1, 1)
    modules = text(b"_lib") + text(b"relax.vm") + text(b"bytecode") + text(b"cuda") + text(cuda)
    return text(tree + modules)


def test_source_becomes_code() -> None:
    table = struct.pack("<QQ", 1, 7)
    found = replaced(
        blob(text(b"cuda") + table + text(b"source")), lambda source: source.encode() * 2
    )
    assert found == blob(text(b"cubin") + table + text(b"sourcesource"))


def test_code_stays() -> None:
    compiled = blob(text(b"cubin") + text(b"code"))
    assert replaced(compiled, lambda source: b"never") == compiled
