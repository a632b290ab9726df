"""Codes looked up for other codes, in registers or in memory."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
import tvm_ffi

from graphopt.machine import host_features
from graphopt.serving.runtime import passed
from graphopt.targets.cpu.kernels.code_table import CODES, code_table

TARGET = {"kind": "llvm", "num-cores": 1}


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("permutes", [True, False])
def test_all_codes_anywhere(dtype: str, permutes: bool) -> None:
    """Whole vectors, parts of one, and both; nothing is written beyond."""
    if permutes and "avx512vbmi" not in host_features():
        pytest.skip("this CPU lacks AVX512-VBMI")
    target = {**TARGET, "mcpu": "icelake-server"} if permutes else TARGET
    kernel = code_table(permutes, dtype).with_attr("global_symbol", "f")
    function = tvm.compile(kernel, target=tvm.target.Target(target))["f"]
    rng = np.random.default_rng(1)
    table = rng.permutation(CODES).astype(np.uint8)
    for count in (1, 63, 64, 65, 256, 1000):
        codes = rng.permutation(np.arange(count) % CODES).astype(np.uint8)
        room = np.full(count + 64, 7, np.uint8)
        operands = [codes.view(dtype), table, room[:count]]
        function(*map(tvm_ffi.from_dlpack, passed(operands)))
        assert (room[:count] == table[codes]).all() and (room[count:] == 7).all()
