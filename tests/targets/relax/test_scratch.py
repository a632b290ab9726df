"""Scratch of kernels is on the stack, as far as it is small and its size is known."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tvm
from tvm import tirx
from tvm.script import tirx as T

from graphopt.targets.relax.scratch import LARGEST, MOST, ON_STACK, on_stack

HOST = tvm.target.Target({"kind": "llvm", "num-cores": 1})
FLOATS = LARGEST // 4


def sums(size: int | None, scope: str) -> tirx.PrimFunc:
    """Kernel (x[n, size]) -> y[n, size] of running sums, with scratch for a row."""
    width = tirx.Var("width", "int64") if size is None else size

    @T.prim_func(s_tir=True)
    def main(a: T.handle, b: T.handle):
        n = T.int64()
        x = T.match_buffer(a, (n, width), "float32", align=4)
        y = T.match_buffer(b, (n, width), "float32", align=4)
        total = T.alloc_buffer((width,), "float32", scope=scope)
        for k in range(width):
            total[k] = T.float32(0)
        for row in range(n):
            for k in range(width):
                total[k] = total[k] + x[row, k]
                y[row, k] = total[k]

    return main


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize(
    ("size", "asks"),
    [(8, False), (FLOATS, False), (FLOATS + 1, True), (None, True)],
    ids=["small", "largest", "too large", "known at run time"],
)
def test_what_the_runtime_is_asked_for(size: int | None, asks: bool, scope: str) -> None:
    built = tvm.compile(sums(size, scope), target=HOST, tir_pipeline=ON_STACK)
    assert ("AllocWorkspace" in built.mod.inspect_source("ll")) is asks
    x = np.ones((3, size or 5), np.float32)
    y = tvm.runtime.empty(x.shape, "float32")
    built["main"](tvm.runtime.tensor(x), y)
    np.testing.assert_array_equal(y.numpy(), np.cumsum(x, axis=0))


def test_vectors_do_not_cross_lines() -> None:
    source = tvm.compile(sums(FLOATS - 1, "local"), target=HOST, tir_pipeline=ON_STACK).mod
    places = re.findall(rf"alloca \[{FLOATS // 16} x .*, align (\d+)", source.inspect_source("ll"))
    assert places == ["64"]


def test_the_stack_is_not_filled() -> None:
    buffers = [tirx.decl_buffer((FLOATS,), "float32") for _ in range(MOST // LARGEST + 1)]
    small = tirx.decl_buffer((1,), "float32x16")
    body = tirx.SeqStmt([tirx.AllocBuffer(b) for b in (*buffers, small)])
    placed = on_stack(tirx.PrimFunc([], body)).body
    allocated = [s for s in placed if isinstance(s, tirx.AllocBuffer)]
    assert [bool(s.annotations) for s in allocated] == [True] * (MOST // LARGEST) + [False, False]
