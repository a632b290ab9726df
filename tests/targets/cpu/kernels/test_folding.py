"""Matrices of a vector a row: turned around."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.script import tirx as T

from graphopt.targets.cpu.kernels.folding import transposing
from graphopt.targets.kernels import script


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
def test_rows_become_columns(width: int, compile_kernels) -> None:
    transpose = transposing(width)

    @script.prim_func(private=True, s_tir=True)
    def turned(a: T.handle, b: T.handle):
        x = T.match_buffer(a, (width * width,), "float32", align=4)
        y = T.match_buffer(b, (width * width,), "float32", align=4)
        block = T.alloc_buffer((width * width,), "float32")
        for k in range(width * width):
            block[k] = x[k]
        transpose(block)
        for k in range(width * width):
            y[k] = block[k]

    x = np.arange(width * width, dtype=np.float32)
    (y,) = compile_kernels({"turned": turned})["turned"]([x], [(x.shape, "float32")])
    np.testing.assert_array_equal(y.reshape(width, width), x.reshape(width, width).T)
