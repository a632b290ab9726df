"""Peaks are told by as many operations as the loops do."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from graphopt.machine import host_features, tiles_allowed
from graphopt.targets.cpu import peak
from graphopt.targets.cpu.kernels.amx import TILE
from graphopt.targets.cpu.target import CpuTarget

# Words of ones: a float, two of bfloat16, four bytes, two of 16 bits.
ONES = {"": 0x3F800000, "bf16": 0x3F803F80, "busd": 0x01010101, "wd": 0x00010001}


def grown(name: str, call: partial[object]) -> float:
    """The products that were added up, where all are of 1 by 1."""
    kind = next((kind for kind in ("busd", "wd") if name.endswith(kind)), name and "bf16")
    data = np.from_dlpack(call.args[0])
    data[:] = ONES[kind]
    before = data.copy()
    call()
    if not name.startswith("t"):
        before[:] = 0  # where vectors start from
        data = data[: peak._SUMS, : CpuTarget.parse("").lanes]
    before = before[: len(data), : data.shape[1]]
    if kind not in ("busd", "wd"):
        before, data = before.view(np.float32), data.view(np.float32)
    copies = peak._EACH_WAY**2 if name.startswith("t") else 1  # one of the tiles is seen
    assert data.size == TILE * TILE or copies == 1
    return copies * float((data - before).sum())


def test_operations_are_those_that_are_done() -> None:
    calls = peak.products()
    assert "" in calls
    for name, flags in {
        "dpbf16ps": {"avx512_bf16"},
        "vpdpbusd": {"avx512_vnni"},
        "vpmaddwd": {"avx2"},
        "tdpbf16ps": {"amx_tile", "amx_bf16"},
        "tdpbusd": {"amx_tile", "amx_int8"},
    }.items():
        allowed = tiles_allowed() or not name.startswith("t")
        other = name == "vpmaddwd" and "avx512f" in host_features()
        assert (name in calls) == (flags <= host_features() and allowed and not other)
    for name, (call, operations) in calls.items():
        assert isinstance(call, partial)
        assert operations == pytest.approx(2 * grown(name, call), rel=1e-6), name
